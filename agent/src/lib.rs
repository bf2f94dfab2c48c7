//! The overlay network agent of the Selvage appliance image.
