//! VICI, the protocol by which strongSwan's charon is controlled: its packets and messages.
//!
//! As in strongSwan's `src/libcharon/plugins/vici/README.md`. Each packet goes after its length, 32 bits in network order:
//!
//! ```text
//! packet:   type (8 bits)  [length of the name (8)  name]  [message]
//! message:  elements, each a type (8), with a name or a value or both, as the type has them:
//!             1 section start  name        4 list start  name
//!             2 section end                5 list item   value
//!             3 key and value  name value  6 list end
//! name:     length (8)   bytes
//! value:    length (16, network order)  bytes
//! ```
//!
//! Parsing is total, and needs no more memory than a few times the packet's length. Values may hold secrets, so `Debug`
//! shows only their lengths.

#[cfg(test)]
mod tests;

use std::fmt;

use thiserror::Error;

/// The longest packet, in bytes, without its length: `VICI_MESSAGE_SIZE_MAX` of `vici_socket.c`.
pub const MAX_PACKET: usize = 512 * 1024;

/// How deep sections may be nested. charon's own messages have at most four levels.
const MAX_DEPTH: usize = 16;

const SECTION_START: u8 = 1;
const SECTION_END: u8 = 2;
const KEY_VALUE: u8 = 3;
const LIST_START: u8 = 4;
const LIST_ITEM: u8 = 5;
const LIST_END: u8 = 6;

/// The bytes are no packet, or a packet cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PacketError {
    /// It ends in the middle of something.
    #[error("the packet ends too early")]
    Short,
    /// There is more than one packet.
    #[error("the packet goes on after its end")]
    Long,
    /// The type of the packet is unknown.
    #[error("unknown packet type {0}")]
    Type(u8),
    /// The type of an element is unknown.
    #[error("unknown element type {0}")]
    Element(u8),
    /// An element stands where none of its type may.
    #[error("element type {0} is out of place")]
    Place(u8),
    /// A section or list is not closed, or one is closed that was not opened.
    #[error("a section or list is not balanced")]
    Unbalanced,
    /// Sections are nested too deeply.
    #[error("sections are nested more than {MAX_DEPTH} levels deep")]
    Deep,
    /// A name is not text.
    #[error("a name is not UTF-8")]
    Name,
    /// A name of more than 255 bytes, a value of more than 65,535, or a packet of more than 512 KiB.
    #[error("a name, a value or the packet is too long")]
    Size,
}

/// A packet of either direction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Packet {
    /// A command, from the client.
    Request(String, Section),
    /// The answer to a command.
    Response(Section),
    /// The command is unknown.
    UnknownCommand,
    /// The client wants the events of this name.
    Register(String),
    /// The client wants them no more.
    Unregister(String),
    /// The wish was noted.
    Confirm,
    /// The event is unknown.
    UnknownEvent,
    /// An event.
    Event(String, Section),
}

/// A section of a message, or the message itself.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Section(Vec<(String, Element)>);

/// What a section has under one name.
#[derive(Clone, PartialEq, Eq)]
pub enum Element {
    /// A value, which has no type of its own.
    Value(Vec<u8>),
    /// A list of values.
    List(Vec<Vec<u8>>),
    /// A section.
    Section(Section),
}

impl Section {
    /// Adds a value.
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = Element::Value(value.as_ref().to_vec());
        self.0.push((name.to_owned(), value));
        self
    }

    /// Adds a list of one value.
    pub fn with_list(mut self, name: &str, only: impl AsRef<[u8]>) -> Self {
        let list = Element::List(vec![only.as_ref().to_vec()]);
        self.0.push((name.to_owned(), list));
        self
    }

    /// Adds a section.
    pub fn with_section(mut self, name: &str, section: Self) -> Self {
        self.0.push((name.to_owned(), Element::Section(section)));
        self
    }

    /// What it has, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Element)> {
        self.0.iter().map(|(name, element)| (&**name, element))
    }

    /// The first element of that name.
    fn get(&self, name: &str) -> Option<&Element> {
        self.iter()
            .find_map(|(found, element)| (found == name).then_some(element))
    }

    /// A value that is text; `None` for anything else.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Element::Value(value) => str::from_utf8(value).ok(),
            Element::List(_) | Element::Section(_) => None,
        }
    }

    /// The texts of a list; those that are none are left out.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        let items = match self.get(name) {
            Some(Element::List(items)) => items.as_slice(),
            _ => &[],
        };
        items.iter().filter_map(|item| str::from_utf8(item).ok())
    }

    /// The section of that name.
    pub fn section(&self, name: &str) -> Option<&Self> {
        match self.get(name)? {
            Element::Section(section) => Some(section),
            Element::Value(_) | Element::List(_) => None,
        }
    }

    /// Its sections, with their names.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.iter().filter_map(|(name, element)| match element {
            Element::Section(section) => Some((name, section)),
            Element::Value(_) | Element::List(_) => None,
        })
    }

    fn write(&self, bytes: &mut Vec<u8>) -> Result<(), PacketError> {
        for (name, element) in self.iter() {
            match element {
                Element::Value(value) => {
                    bytes.push(KEY_VALUE);
                    write_name(bytes, name)?;
                    write_value(bytes, value)?;
                }
                Element::List(items) => {
                    bytes.push(LIST_START);
                    write_name(bytes, name)?;
                    for item in items {
                        bytes.push(LIST_ITEM);
                        write_value(bytes, item)?;
                    }
                    bytes.push(LIST_END);
                }
                Element::Section(section) => {
                    bytes.push(SECTION_START);
                    write_name(bytes, name)?;
                    section.write(bytes)?;
                    bytes.push(SECTION_END);
                }
            }
        }
        Ok(())
    }

    fn read(mut rest: &[u8]) -> Result<Self, PacketError> {
        let mut open: Vec<(String, Self)> = Vec::new();
        let mut current = Self::default();
        while !rest.is_empty() {
            match take_byte(&mut rest)? {
                SECTION_START if open.len() == MAX_DEPTH => return Err(PacketError::Deep),
                SECTION_START => {
                    let name = take_name(&mut rest)?;
                    open.push((name, std::mem::take(&mut current)));
                }
                SECTION_END => {
                    let (name, outer) = open.pop().ok_or(PacketError::Unbalanced)?;
                    let section = std::mem::replace(&mut current, outer);
                    current.0.push((name, Element::Section(section)));
                }
                KEY_VALUE => {
                    let name = take_name(&mut rest)?;
                    let value = Element::Value(take_value(&mut rest)?.to_vec());
                    current.0.push((name, value));
                }
                LIST_START => {
                    let name = take_name(&mut rest)?;
                    let list = Element::List(take_items(&mut rest)?);
                    current.0.push((name, list));
                }
                other @ (LIST_ITEM | LIST_END) => return Err(PacketError::Place(other)),
                other => return Err(PacketError::Element(other)),
            }
        }
        match open.is_empty() {
            true => Ok(current),
            false => Err(PacketError::Unbalanced),
        }
    }
}

fn write_name(bytes: &mut Vec<u8>, name: &str) -> Result<(), PacketError> {
    bytes.push(u8::try_from(name.len()).map_err(|_| PacketError::Size)?);
    bytes.extend(name.as_bytes());
    Ok(())
}

fn write_value(bytes: &mut Vec<u8>, value: &[u8]) -> Result<(), PacketError> {
    let length = u16::try_from(value.len()).map_err(|_| PacketError::Size)?;
    bytes.extend(length.to_be_bytes());
    bytes.extend(value);
    Ok(())
}

fn take_byte(rest: &mut &[u8]) -> Result<u8, PacketError> {
    let (first, after) = rest.split_first().ok_or(PacketError::Short)?;
    *rest = after;
    Ok(*first)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], PacketError> {
    let (taken, after) = rest.split_at_checked(length).ok_or(PacketError::Short)?;
    *rest = after;
    Ok(taken)
}

fn take_name(rest: &mut &[u8]) -> Result<String, PacketError> {
    let length = take_byte(rest)?;
    let name = take(rest, length.into())?;
    let name = str::from_utf8(name).map_err(|_| PacketError::Name)?;
    Ok(name.to_owned())
}

fn take_value<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], PacketError> {
    let (length, after) = rest.split_first_chunk().ok_or(PacketError::Short)?;
    *rest = after;
    take(rest, u16::from_be_bytes(*length).into())
}

fn take_items(rest: &mut &[u8]) -> Result<Vec<Vec<u8>>, PacketError> {
    let mut items = Vec::new();
    loop {
        match take_byte(rest).map_err(|_| PacketError::Unbalanced)? {
            LIST_ITEM => items.push(take_value(rest)?.to_vec()),
            LIST_END => return Ok(items),
            other => return Err(PacketError::Place(other)),
        }
    }
}

impl Packet {
    /// Its type: `vici_operation_t` of `vici_socket.h`.
    fn kind(&self) -> u8 {
        match self {
            Self::Request(..) => 0,
            Self::Response(_) => 1,
            Self::UnknownCommand => 2,
            Self::Register(_) => 3,
            Self::Unregister(_) => 4,
            Self::Confirm => 5,
            Self::UnknownEvent => 6,
            Self::Event(..) => 7,
        }
    }

    /// The bytes, without the length that precedes them.
    ///
    /// # Errors
    /// [`PacketError::Size`].
    pub fn write(&self) -> Result<Vec<u8>, PacketError> {
        let mut bytes = vec![self.kind()];
        match self {
            Self::Request(name, message) | Self::Event(name, message) => {
                write_name(&mut bytes, name)?;
                message.write(&mut bytes)?;
            }
            Self::Response(message) => message.write(&mut bytes)?,
            Self::Register(name) | Self::Unregister(name) => write_name(&mut bytes, name)?,
            Self::UnknownCommand | Self::Confirm | Self::UnknownEvent => (),
        }
        match bytes.len() <= MAX_PACKET {
            true => Ok(bytes),
            false => Err(PacketError::Size),
        }
    }

    /// Reads what [`Self::write`] returns.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn read(bytes: &[u8]) -> Result<Self, PacketError> {
        if bytes.len() > MAX_PACKET {
            return Err(PacketError::Size);
        }
        let mut rest = bytes;
        let kind = take_byte(&mut rest)?;
        let named = matches!(kind, 0 | 3 | 4 | 7);
        let name = match named {
            true => take_name(&mut rest)?,
            false => String::new(),
        };
        if matches!(kind, 2..=6) && !rest.is_empty() {
            return Err(PacketError::Long);
        }
        Ok(match kind {
            0 => Self::Request(name, Section::read(rest)?),
            1 => Self::Response(Section::read(rest)?),
            2 => Self::UnknownCommand,
            3 => Self::Register(name),
            4 => Self::Unregister(name),
            5 => Self::Confirm,
            6 => Self::UnknownEvent,
            7 => Self::Event(name, Section::read(rest)?),
            other => return Err(PacketError::Type(other)),
        })
    }
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "{} bytes", value.len()),
            Self::List(items) => write!(f, "{} items", items.len()),
            Self::Section(section) => section.fmt(f),
        }
    }
}
