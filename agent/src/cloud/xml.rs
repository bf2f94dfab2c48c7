//! Reads the XML of an API's answers: elements and their text, nothing else.
//!
//! Enough for EC2's Query API, whose answers have neither attributes of interest nor mixed content. A document type, and
//! with it entities of its own, is refused.

use std::borrow::Cow;

use thiserror::Error;

/// More nested elements than any answer has.
const MAX_DEPTH: usize = 64;

/// An element.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Element {
    name: String,
    text: String,
    children: Vec<Element>,
}

/// What is no XML that is understood here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("bad XML: {what} at byte {at}")]
pub(crate) struct XmlError {
    what: &'static str,
    at: usize,
}

impl Element {
    /// Reads a document; returns its root.
    pub(crate) fn parse(text: &str) -> Result<Self, XmlError> {
        let mut reader = Reader { text, at: 0 };
        // The root is the only child of this one.
        let mut open = vec![Element::default()];
        while let Some(token) = reader.next()? {
            match token {
                Token::Text(text) => {
                    if let Some(element) = open.last_mut() {
                        element.text.push_str(&text);
                    }
                }
                Token::Open(_) if open.len() > MAX_DEPTH => {
                    return Err(reader.error("too deep"));
                }
                Token::Open(name) => open.push(Element {
                    name: name.to_owned(),
                    ..Element::default()
                }),
                Token::Empty(name) => {
                    if let Some(parent) = open.last_mut() {
                        parent.children.push(Element {
                            name: name.to_owned(),
                            ..Element::default()
                        });
                    }
                }
                Token::Close(name) => match (open.pop(), open.last_mut()) {
                    (Some(done), Some(parent)) if done.name == name => parent.children.push(done),
                    _ => return Err(reader.error("unexpected end tag")),
                },
            }
        }
        match (open.pop(), open.is_empty()) {
            (Some(mut document), true) if document.children.len() == 1 => {
                document.children.pop().ok_or(reader.error("no element"))
            }
            _ => Err(reader.error("not one whole element")),
        }
    }

    /// The elements of this name at the end of a path, in order: `routeSet/item`.
    pub(crate) fn all<'a>(&'a self, path: &str) -> Vec<&'a Element> {
        let mut found = vec![self];
        for name in path.split('/') {
            found = (found.into_iter().flat_map(|element| &element.children))
                .filter(|child| child.name == name)
                .collect();
        }
        found
    }

    /// The text of the first element at the end of a path, without blanks around it; `None` if it is empty.
    pub(crate) fn text<'a>(&'a self, path: &str) -> Option<&'a str> {
        let element = self.all(path).into_iter().next()?;
        Some(element.text.trim()).filter(|text| !text.is_empty())
    }
}

enum Token<'a> {
    Open(&'a str),
    Empty(&'a str),
    Close(&'a str),
    Text(Cow<'a, str>),
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, what: &'static str) -> XmlError {
        XmlError { what, at: self.at }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// What comes before `end`, which is skipped.
    fn until(&mut self, end: &str, what: &'static str) -> Result<&'a str, XmlError> {
        let (before, _) = self.rest().split_once(end).ok_or(self.error(what))?;
        self.at += before.len() + end.len();
        Ok(before)
    }

    fn next(&mut self) -> Result<Option<Token<'a>>, XmlError> {
        loop {
            let rest = self.rest();
            if rest.is_empty() {
                return Ok(None);
            }
            if !rest.starts_with('<') {
                let text = rest.split('<').next().unwrap_or_default();
                let token = Token::Text(unescape(text).ok_or(self.error("unknown entity"))?);
                self.at += text.len();
                return Ok(Some(token));
            }
            if rest.starts_with("<?") {
                self.until("?>", "unfinished declaration")?;
            } else if rest.starts_with("<!--") {
                self.at += "<!--".len();
                self.until("-->", "unfinished comment")?;
            } else if rest.starts_with("<![CDATA[") {
                self.at += "<![CDATA[".len();
                let text = self.until("]]>", "unfinished CDATA")?;
                return Ok(Some(Token::Text(text.into())));
            } else if rest.starts_with("<!") {
                return Err(self.error("document type"));
            } else {
                return self.tag().map(Some);
            }
        }
    }

    fn tag(&mut self) -> Result<Token<'a>, XmlError> {
        self.at += 1;
        let inside = self.until(">", "unfinished tag")?;
        let (name, close) = match inside.strip_prefix('/') {
            Some(name) => (name, true),
            None => (inside, false),
        };
        let (name, empty) = match name.strip_suffix('/') {
            Some(name) => (name, true),
            None => (name, false),
        };
        let name = name.split_whitespace().next().unwrap_or_default();
        match (name.is_empty(), close, empty) {
            (true, ..) | (_, true, true) => Err(self.error("bad tag")),
            (_, true, false) => Ok(Token::Close(name)),
            (_, false, true) => Ok(Token::Empty(name)),
            (_, false, false) => Ok(Token::Open(name)),
        }
    }
}

/// The text with its entities replaced; `None` for an unknown one.
fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('&') {
        return Some(text.into());
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        let (name, after) = after.split_once(';')?;
        plain.push_str(before);
        plain.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let digits = name.strip_prefix('#')?;
                let code = match digits.strip_prefix('x') {
                    Some(hex) => u32::from_str_radix(hex, 16),
                    None => digits.parse(),
                };
                char::from_u32(code.ok()?)?
            }
        });
        rest = after;
    }
    plain.push_str(rest);
    Some(plain.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From the EC2 API Reference, `DescribeRouteTables`, shortened.
    const ANSWER: &str = r#"<DescribeRouteTablesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
   <requestId>6f570b0b-9c18-4b07-bdec-73740dcf861aEXAMPLE</requestId>
   <routeTableSet>
      <item>
         <routeTableId>rtb-13ad487a</routeTableId>
         <routeSet>
            <item><destinationCidrBlock>10.0.0.0/22</destinationCidrBlock><gatewayId>local</gatewayId><state>active</state></item>
            <item><destinationCidrBlock>0.0.0.0/0</destinationCidrBlock><gatewayId>igw-12345678901234567</gatewayId></item>
         </routeSet>
         <tagSet/>
      </item>
   </routeTableSet>
</DescribeRouteTablesResponse>"#;

    #[test]
    fn elements_are_found_by_their_path() {
        let root = Element::parse(ANSWER).unwrap();
        let routes = root.all("routeTableSet/item/routeSet/item");
        let gateways: Vec<_> = routes.iter().map(|route| route.text("gatewayId")).collect();
        assert_eq!(gateways, [Some("local"), Some("igw-12345678901234567")]);
        assert_eq!(routes[1].text("state"), None);
        assert_eq!(root.text("routeTableSet/item/tagSet"), None);
    }

    #[test]
    fn entities_comments_and_declarations_are_understood() {
        let text = "<?xml version=\"1.0\"?><!-- <b> --><a x='1'>R&amp;D &lt;&#65;&#x42;&gt; <![CDATA[&amp;<]]></a>\n";
        assert_eq!(Element::parse(text).unwrap().text, "R&D <AB> &amp;<");
    }

    #[test]
    fn what_is_not_one_whole_element_is_refused() {
        let deep = "<a>".repeat(1000);
        for text in [
            "",
            "text",
            "<a>",
            "</a>",
            "<a></b>",
            "<a/><b/>",
            "<a>&nbsp;</a>",
            "<a>&#xD800;</a>",
            "<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>",
            "<>",
            "< />",
            "<a",
            "<!-- ",
            &deep,
        ] {
            assert!(Element::parse(text).is_err(), "{text:.40}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[<>/&;!?a \\[\\]-]{0,60}|\\PC{0,40}") {
            let _ = Element::parse(&text);
        }

        #[test]
        fn no_cut_answer_is_taken_for_a_whole_one(length in 0..ANSWER.len()) {
            prop_assert!(Element::parse(&ANSWER[..length]).is_err());
        }
    }
}
