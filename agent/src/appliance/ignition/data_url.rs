//! `data:` URLs (RFC 2397), which hold file contents in an Ignition config.

use std::fmt::Write as _;

use thiserror::Error;

/// Why Ignition cannot decode a `data:` URL.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum DataUrlError {
    #[error("a data URL must have a comma before its data, as in \"data:,text\"")]
    NoComma,
    #[error("{0:?} is not a media type: expected type/subtype")]
    MediaType(String),
    #[error("{0:?} is not a media type parameter: expected name=value, or base64 as the last one")]
    Parameter(String),
    #[error("{found:?} at character {at} of the data must be percent-encoded")]
    Character { found: char, at: usize },
    #[error("'%' at character {0} of the data is not followed by two hexadecimal digits")]
    Escape(usize),
    #[error("the data is not padded standard base64: {0}")]
    Base64(&'static str),
}

/// Encodes `text` as a readable `data:` URL: percent-encoding, with all characters that a URL allows unchanged.
pub(super) fn encode(text: &str) -> String {
    let mut url = String::from("data:,");
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/:=,@".contains(&byte) {
            url.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _infallible = write!(url, "%{byte:02X}");
        }
    }
    url
}

/// Decodes a `data:` URL. Accepts what Ignition's decoder accepts, which is stricter than RFC 2397: a lower-case
/// scheme, padded base64, and no unescaped characters outside RFC 2396's `uric`.
pub(super) fn decode(url: &str) -> Result<Vec<u8>, DataUrlError> {
    let rest = url.strip_prefix("data:").unwrap_or(url);
    let (header, data) = rest.split_once(',').ok_or(DataUrlError::NoComma)?;
    let mut parameters = header.split(';');
    let media_type = parameters.next().unwrap_or_default();
    let is_media_type = media_type
        .split_once('/')
        .is_some_and(|(kind, subtype)| !kind.is_empty() && !subtype.is_empty());
    if !media_type.is_empty() && !is_media_type {
        return Err(DataUrlError::MediaType(media_type.to_owned()));
    }
    let mut is_base64 = false;
    for parameter in parameters {
        if is_base64 || (parameter != "base64" && !parameter.contains('=')) {
            return Err(DataUrlError::Parameter(parameter.to_owned()));
        }
        is_base64 = parameter == "base64";
    }
    if is_base64 {
        decode_base64(data).map_err(DataUrlError::Base64)
    } else {
        decode_percent(data)
    }
}

fn decode_percent(data: &str) -> Result<Vec<u8>, DataUrlError> {
    let mut decoded = Vec::with_capacity(data.len());
    let mut characters = data.chars().enumerate();
    while let Some((at, found)) = characters.next() {
        match found {
            '%' => {
                let mut digit = || characters.next().and_then(|(_, c)| c.to_digit(16));
                let (high, low) = (digit(), digit());
                let (Some(high), Some(low)) = (high, low) else {
                    return Err(DataUrlError::Escape(at + 1));
                };
                decoded.extend(u8::try_from(high * 16 + low));
            }
            c if c.is_ascii_alphanumeric() || "-_.!~*'();/?:@&=+$,".contains(c) => {
                decoded.extend(u8::try_from(c));
            }
            found => return Err(DataUrlError::Character { found, at: at + 1 }),
        }
    }
    Ok(decoded)
}

/// Standard base64 (RFC 4648 §4), padded.
pub(super) fn decode_base64(text: &str) -> Result<Vec<u8>, &'static str> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if !text.len().is_multiple_of(4) {
        return Err("its length is not a multiple of 4");
    }
    let body = text.trim_end_matches('=');
    if text.len() - body.len() > 2 {
        return Err("it has more than two '='");
    }
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for byte in body.bytes() {
        let digit = ALPHABET.iter().position(|&letter| letter == byte);
        let digit = digit.and_then(|digit| u32::try_from(digit).ok());
        bits = bits << 6 | digit.ok_or("it has a character outside the alphabet")?;
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.extend(u8::try_from(bits >> count));
            bits &= (1 << count) - 1;
        }
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_encodings_decode() {
        for (url, data) in [
            ("data:,", ""),
            ("data:,a%20b%0a", "a b\n"),
            ("data:text/plain;charset=utf-8,hi", "hi"),
            ("data:;base64,", ""),
            ("data:;base64,aGk=", "hi"),
            ("data:text/plain;charset=utf-8;base64,aGkh", "hi!"),
        ] {
            assert_eq!(decode(url).unwrap(), data.as_bytes(), "{url}");
        }
    }

    #[test]
    fn what_ignition_refuses_is_refused() {
        for url in [
            "data:x",
            "data:bogus,x",
            "data:;x,y",
            "data:;base64;charset=utf-8,aGk=",
            "data:,a b",
            "data:,a#b",
            "data:,[",
            "data:,é",
            "data:,%zz",
            "data:,%4",
            "data:;base64,AAA",
            "data:;base64,aGk%3D",
            "data:;base64,A===",
            "data:;base64,a-k=",
        ] {
            assert!(decode(url).is_err(), "{url} was accepted");
        }
    }

    proptest! {
        #[test]
        fn encoded_text_decodes_to_itself(text in any::<String>()) {
            prop_assert_eq!(decode(&encode(&text)).unwrap(), text.as_bytes());
        }

        #[test]
        fn decoding_never_panics(url in "data:[ -~é]{0,40}") {
            let _any_result = decode(&url);
        }
    }
}
