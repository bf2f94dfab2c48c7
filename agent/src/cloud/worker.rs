//! Keeps the routes.
