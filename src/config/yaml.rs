//! YAML as a tree in which every node knows its place, so that a mistake can be shown there.
//! Not here: what the keys mean.

use std::collections::HashMap;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Deepest nesting of a file.
const DEPTH_MAX: usize = 32;
/// Most nodes of a file, aliases counted as often as they are used.
const NODES_MAX: usize = 200_000;

/// Where something stands. Lines and columns count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index of the file among those that are read together.
    pub file: usize,
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// What is wrong; what was expected; what may have been meant.
    pub message: String,
}

/// A value with its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its place.
    pub place: Place,
    /// What it is.
    pub kind: Kind,
    /// What stands in the file, where that says more than the kind.
    written: Option<Written>,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A plain whole number.
    Int(i64),
    /// A plain number with a fraction or exponent.
    Float(f64),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in file order.
    Map(Vec<(Key, Node)>),
}

/// A scalar as it stands in the file.
#[derive(Clone, Debug)]
enum Written {
    /// A number or a truth value.
    Plain(String),
    /// A text, which may be escaped or folded there: the whole file, and how.
    Text(Arc<str>, ScalarStyle),
}

/// A key of a mapping.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its text.
    pub name: String,
    /// Its place.
    pub place: Place,
}

impl Node {
    /// A node of nothing, or of what has no text of its own.
    pub fn new(place: Place, kind: Kind) -> Self {
        Self { place, kind, written: None }
    }

    /// The scalar as it was written, which numbers and truth values are too where text is meant.
    pub fn text(&self) -> Option<String> {
        match &self.kind {
            Kind::Text(text) => Some(text.clone()),
            Kind::Int(_) | Kind::Float(_) | Kind::Bool(_) => match &self.written {
                Some(Written::Plain(text)) => Some(text.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    /// What a person would call it.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Null => "nothing",
            Kind::Bool(_) => "a truth value",
            Kind::Int(_) => "a whole number",
            Kind::Float(_) => "a number",
            Kind::Text(_) => "text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a map",
        }
    }

    /// Place of the byte `at` of this scalar's text.
    pub fn place_in(&self, at: usize) -> Place {
        match &self.kind {
            Kind::Text(text) => {
                let Some(Written::Text(file, style)) = &self.written else { return self.place };
                let visible = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
                let before = visible(text.get(..at).unwrap_or_default());
                if before > 0 && before == visible(text) {
                    // Behind the last: what follows it in the file is something else.
                    let last = place_of_nth(file, *style, before - 1, self.place);
                    return Place { column: last.column + 1, ..last };
                }
                place_of_nth(file, *style, before, self.place)
            }
            _ => self.place,
        }
    }
}

/// How messages of the parser begin.
const NOT_YAML: &str = "not YAML: ";

/// Reads one document.
///
/// # Errors
/// The mistake that keeps it from being a tree: ill-formed YAML, or excess. Keys that stand twice do not:
/// the first is taken, and they come beside it.
pub fn parse(text: &str, file: usize) -> Result<(Node, Vec<Mistake>), Mistake> {
    let mut builder = Builder {
        file,
        text: text.into(),
        events: Parser::new_from_str(text),
        nodes: 0,
        anchors: HashMap::new(),
        mistakes: Vec::new(),
    };
    let root = builder.document().map_err(|m| {
        // What the builder itself refuses is where it says.
        let tab = tab(text, file).filter(|t| m.message.starts_with(NOT_YAML) && t.place.line <= m.place.line);
        tab.unwrap_or(m)
    })?;
    Ok((root, builder.mistakes))
}

/// The first line that is indented with a tab: the usual cause of errors that are reported far
/// below it.
fn tab(text: &str, file: usize) -> Option<Mistake> {
    let is_tabbed = |line: &str| line.trim_start_matches(' ').starts_with('\t') && !line.trim().is_empty();
    let index = text.lines().position(is_tabbed)?;
    let message = format!("{NOT_YAML}a tab in the indentation; expected spaces");
    Some(Mistake { place: Place { file, line: index + 1, column: 1 }, message })
}

struct Builder<'a> {
    file: usize,
    text: Arc<str>,
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    nodes: usize,
    anchors: HashMap<usize, (Node, usize)>,
    mistakes: Vec<Mistake>,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Place), Mistake> {
        let file = self.file;
        let end = Mistake {
            place: Place { file, line: 1, column: 1 },
            message: "the file ends too early".to_owned(),
        };
        match self.events.next_event() {
            Some(Ok((event, span))) => {
                let (line, column) = (span.start.line(), span.start.col() + 1);
                Ok((event, Place { file, line: line.max(1), column }))
            }
            Some(Err(error)) => {
                let marker = error.marker();
                let place = Place { file, line: marker.line().max(1), column: marker.col() + 1 };
                Err(Mistake { place, message: format!("{NOT_YAML}{}", error.info()) })
            }
            None => Err(end),
        }
    }

    fn document(&mut self) -> Result<Node, Mistake> {
        loop {
            let (event, place) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(_) | Event::Nothing => {}
                Event::StreamEnd | Event::DocumentEnd => {
                    return Ok(Node::new(Place { line: 1, column: 1, ..place }, Kind::Null));
                }
                event => {
                    let root = self.node(event, place, 0)?;
                    loop {
                        match self.next()? {
                            (Event::StreamEnd, _) => return Ok(root),
                            (Event::DocumentStart(_), place) => {
                                let message = "a second document; expected one per file".to_owned();
                                return Err(Mistake { place, message });
                            }
                            _ => {}
                        }
                    }
                }
            }
        }
    }

    fn node(&mut self, event: Event<'a>, place: Place, depth: usize) -> Result<Node, Mistake> {
        self.nodes += 1;
        let excess = |message: &str| Err(Mistake { place, message: message.to_owned() });
        if depth > DEPTH_MAX {
            return excess("nested too deep; expected at most 32 levels");
        }
        let mut written = None;
        let (kind, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(tag) = tag {
                    let message = format!("unexpected tag `{}{}`", tag.handle, tag.suffix);
                    return Err(Mistake { place, message });
                }
                let kind = scalar(text.clone().into_owned(), style);
                written = match &kind {
                    Kind::Int(_) | Kind::Float(_) | Kind::Bool(_) => Some(Written::Plain(text.into_owned())),
                    Kind::Text(_) => Some(Written::Text(Arc::clone(&self.text), style)),
                    _ => None,
                };
                (kind, anchor)
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, place) => items.push(self.node(event, place, depth + 1)?),
                    }
                }
                (Kind::List(items), anchor)
            }
            Event::MappingStart(anchor, _) => (self.mapping(depth)?, anchor),
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return excess("unknown alias");
                };
                self.nodes += size;
                if self.nodes > NODES_MAX {
                    return excess("the file is too large");
                }
                return Ok(Node { place, ..node });
            }
            _ => return excess("unexpected structure"),
        };
        if self.nodes > NODES_MAX {
            return excess("the file is too large");
        }
        let node = Node { place, kind, written };
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), count(&node)));
        }
        Ok(node)
    }

    fn mapping(&mut self, depth: usize) -> Result<Kind, Mistake> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, place) = self.next()?;
            let name = match event {
                Event::MappingEnd => return Ok(Kind::Map(entries)),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => {
                    let message = "unexpected key; expected text".to_owned();
                    return Err(Mistake { place, message });
                }
            };
            let (event, value_place) = self.next()?;
            let mut value = self.node(event, value_place, depth + 1)?;
            if matches!(value.kind, Kind::Null) {
                value.place = place;
            }
            if let Some((first, _)) = entries.iter().find(|(k, _)| k.name == name) {
                let line = first.place.line;
                let message = format!("`{name}` stands twice; expected each key once (first on line {line})");
                self.mistakes.push(Mistake { place, message });
                continue;
            }
            entries.push((Key { name, place }, value));
        }
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.kind {
        Kind::List(items) => items.iter().map(count).sum(),
        Kind::Map(entries) => entries.iter().map(|(_, n)| count(n)).sum(),
        _ => 0,
    }
}

/// Where the character of a scalar stands that has `before` visible ones before it. The scalar begins at
/// `start` of `file`.
fn place_of_nth(file: &str, style: ScalarStyle, before: usize, start: Place) -> Place {
    let line = file.split_inclusive('\n').take(start.line - 1).map(str::len).sum::<usize>();
    let source = file[line..].char_indices().nth(start.column - 1).map_or("", |(at, _)| &file[line + at..]);
    let mut place = start;
    let mut characters = source.chars().peekable();
    let mut seen = 0;
    let step = |place: &mut Place, c: char| {
        if c == '\n' {
            *place = Place { line: place.line + 1, column: 1, ..*place };
        } else {
            place.column += 1;
        }
    };
    match style {
        // What announces a block is a line of its own.
        ScalarStyle::Literal | ScalarStyle::Folded if source.starts_with(['|', '>']) => {
            for c in characters.by_ref() {
                step(&mut place, c);
                if c == '\n' {
                    break;
                }
            }
        }
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
            characters.next();
            place.column += 1;
        }
        _ => {}
    }
    while let Some(c) = characters.next() {
        let mut is_visible = !c.is_whitespace();
        let escaped = match (style, c) {
            (ScalarStyle::DoubleQuoted, '\\') => {
                let escaped = characters.peek().copied();
                is_visible = !matches!(escaped, Some('n' | 't' | 'r' | ' ' | '\n'));
                match escaped {
                    Some('x') => 3,
                    Some('u') => 5,
                    Some('U') => 9,
                    _ => 1,
                }
            }
            (ScalarStyle::SingleQuoted, '\'') => 1,
            _ => 0,
        };
        if is_visible && seen == before {
            return place;
        }
        seen += usize::from(is_visible);
        step(&mut place, c);
        for c in characters.by_ref().take(escaped) {
            step(&mut place, c);
        }
    }
    start
}

/// A scalar by YAML 1.2's core schema.
fn scalar(text: String, style: ScalarStyle) -> Kind {
    match style {
        ScalarStyle::Plain => plain(text),
        _ => Kind::Text(text),
    }
}

fn plain(text: String) -> Kind {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" => return Kind::Bool(true),
        "false" | "False" | "FALSE" => return Kind::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(&text);
    if digits.bytes().all(|b| b.is_ascii_digit())
        && let Ok(n) = text.parse()
    {
        return Kind::Int(n);
    }
    let starts = digits.bytes().next().is_some_and(|b| b.is_ascii_digit() || b == b'.');
    let is_numeric = starts
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    if is_numeric && let Ok(x) = text.parse::<f64>() {
        return Kind::Float(x);
    }
    Kind::Text(text)
}
