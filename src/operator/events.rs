//! A sorted run of projected events in two flat buffers.
//!
//! One event is `stride` words: event time, order (source partition in the upper 16 bits, offset
//! below), bits (flags, then which columns have a value), one word per column. The word of a
//! string is its place in the heap: position in the upper half, length in the lower.

use super::layout::Layout;
use crate::expr::Val;
use crate::model::{Millis, Offset, ScalarType, Value};

/// Bits of an offset in the order word.
const OFFSET_BITS: u32 = 48;

/// Place of an event in the order of SEMANTICS §1 within one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Order {
    /// Event time.
    pub time: Millis,
    /// Source partition and offset.
    pub source: u64,
}

impl Order {
    /// Order of the record at `offset` of `partition`.
    pub fn new(time: Millis, partition: u32, offset: Offset) -> Self {
        Self { time, source: u64::from(partition) << OFFSET_BITS | offset }
    }

    /// The source partition.
    pub fn partition(self) -> u32 {
        (self.source >> OFFSET_BITS) as u32
    }

    /// The offset.
    pub fn offset(self) -> Offset {
        self.source & ((1 << OFFSET_BITS) - 1)
    }
}

/// A sorted run of events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventBuf {
    words: Vec<u64>,
    heap: Vec<u8>,
}

/// One event of a buffer.
#[derive(Clone, Copy)]
pub struct EventRef<'a> {
    layout: &'a Layout,
    words: &'a [u64],
    heap: &'a [u8],
}

impl<'a> EventRef<'a> {
    /// Event time.
    pub fn time(self) -> Millis {
        self.words[0] as Millis
    }

    /// Place in the order.
    pub fn order(self) -> Order {
        Order { time: self.time(), source: self.words[1] }
    }

    /// Whether the event belongs to series `index`.
    pub fn is_in(self, index: usize) -> bool {
        let series = &self.layout.series[index];
        let is_set = |(word, bit): (usize, u32)| self.words[word] >> bit & 1 == 1;
        series.flag.is_none_or(|f| is_set(self.layout.flag_bit(f)))
            && series.column.is_none_or(|c| is_set(self.layout.present_bit(c)))
    }

    /// The word of column `index`.
    pub fn word(self, index: usize) -> u64 {
        self.words[self.layout.column_at(index)]
    }

    /// The number in column `index`, as a float.
    pub fn number(self, index: usize) -> f64 {
        let word = self.word(index);
        if self.layout.columns[index] == ScalarType::Float64 {
            f64::from_bits(word)
        } else {
            word as i64 as f64
        }
    }

    /// Bytes of the string in column `index`.
    pub fn text(self, index: usize) -> &'a [u8] {
        let word = self.word(index);
        let (at, len) = ((word >> 32) as usize, (word & 0xffff_ffff) as usize);
        &self.heap[at..at + len]
    }

    /// The value in column `index`, which must be present.
    pub fn value(self, index: usize) -> Value {
        match self.layout.columns[index] {
            ScalarType::String => text_value(self.text(index)),
            scalar => word_value(scalar, self.word(index)),
        }
    }

    /// Whether column `index` has a value.
    pub fn has_value(self, index: usize) -> bool {
        let (word, bit) = self.layout.present_bit(index);
        self.words[word] >> bit & 1 == 1
    }

    /// Whether flag `index` is set.
    pub fn has_flag(self, index: usize) -> bool {
        let (word, bit) = self.layout.flag_bit(index);
        self.words[word] >> bit & 1 == 1
    }
}

/// The string of these bytes.
pub(super) fn text_value(bytes: &[u8]) -> Value {
    Value::String(String::from_utf8_lossy(bytes).into())
}

/// What a word means in a column of this type, which is no string.
pub(super) fn word_value(scalar: ScalarType, word: u64) -> Value {
    match scalar {
        ScalarType::Float64 => Value::Float(f64::from_bits(word)),
        ScalarType::Bool => Value::Bool(word != 0),
        ScalarType::Timestamp => Value::Timestamp(word as i64),
        ScalarType::Int64 | ScalarType::String => Value::Int(word as i64),
    }
}

impl EventBuf {
    /// An event in a buffer of its own, from its flags and column values.
    pub fn single(layout: &Layout, order: Order, flags: &[bool], columns: &[Val<'_>]) -> Self {
        let mut event = Self::default();
        event.set_single(layout, order, flags.iter().copied(), columns.iter().cloned());
        event
    }

    /// Makes this buffer hold exactly one event; its allocation is kept.
    pub fn set_single<'v>(
        &mut self,
        layout: &Layout,
        order: Order,
        flags: impl Iterator<Item = bool>,
        columns: impl Iterator<Item = Val<'v>>,
    ) {
        self.words.clear();
        self.heap.clear();
        self.words.resize(layout.stride(), 0);
        self.words[0] = order.time as u64;
        self.words[1] = order.source;
        for (i, _) in flags.enumerate().filter(|(_, is_set)| *is_set) {
            let (word, bit) = layout.flag_bit(i);
            self.words[word] |= 1 << bit;
        }
        for (i, value) in columns.enumerate() {
            let cell = match value {
                Val::Null | Val::List(_) | Val::Map(_) => continue,
                Val::Bool(b) => u64::from(b),
                Val::Int(n) | Val::Timestamp(n) => n as u64,
                Val::Float(x) => x.to_bits(),
                Val::Str(s) => {
                    let at = self.heap.len() as u64;
                    self.heap.extend_from_slice(s.as_bytes());
                    at << 32 | s.len() as u64
                }
            };
            let (word, bit) = layout.present_bit(i);
            self.words[word] |= 1 << bit;
            self.words[layout.column_at(i)] = cell;
        }
    }

    /// Number of events.
    pub fn len(&self, layout: &Layout) -> usize {
        self.words.len() / layout.stride()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Bytes that the events take.
    pub fn bytes(&self) -> usize {
        self.words.len() * 8 + self.heap.len()
    }

    /// Bytes that are allocated.
    pub fn capacity_bytes(&self) -> usize {
        self.words.capacity() * 8 + self.heap.capacity()
    }

    /// Event `index`.
    pub fn get<'a>(&'a self, layout: &'a Layout, index: usize) -> EventRef<'a> {
        let stride = layout.stride();
        let words = &self.words[index * stride..(index + 1) * stride];
        EventRef { layout, words, heap: &self.heap }
    }

    fn order_at(&self, layout: &Layout, index: usize) -> Order {
        let at = index * layout.stride();
        Order { time: self.words[at] as Millis, source: self.words[at + 1] }
    }

    /// Place of the first event, if there is one.
    pub fn first_order(&self, layout: &Layout) -> Option<Order> {
        (!self.is_empty()).then(|| self.order_at(layout, 0))
    }

    /// Place of the last event, if there is one.
    pub fn last_order(&self, layout: &Layout) -> Option<Order> {
        let len = self.len(layout);
        (len > 0).then(|| self.order_at(layout, len - 1))
    }

    /// Reads the newest end, so that it is in the processor's caches by the time that it is needed. The
    /// number means nothing.
    pub fn touch(&self) -> u64 {
        self.words.last().copied().unwrap_or(0)
    }

    /// Index of the first event for which `is_before` is false.
    fn partition_point(&self, layout: &Layout, is_before: impl Fn(Order) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len(layout));
        // Most questions are about the newest end.
        if high > 0 && is_before(self.order_at(layout, high - 1)) {
            return high;
        }
        while low < high {
            let middle = low.midpoint(high);
            if is_before(self.order_at(layout, middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Indices of the events with times in `lo..=hi`.
    pub fn range(&self, layout: &Layout, lo: Millis, hi: Millis) -> (usize, usize) {
        let from = self.partition_point(layout, |o| o.time < lo);
        let to = self.partition_point(layout, |o| o.time <= hi);
        (from, to.max(from))
    }

    /// Inserts the only event of `event` at its place. Returns false if it is there already.
    pub fn insert(&mut self, layout: &Layout, event: &Self) -> bool {
        let order = event.order_at(layout, 0);
        let index = self.partition_point(layout, |o| o < order);
        if index < self.len(layout) && self.order_at(layout, index) == order {
            return false;
        }
        let stride = layout.stride();
        if self.words.capacity() == self.words.len() {
            // Small units are many: grow by a half, not by doubling.
            let more = (self.words.len() / 2).max(stride);
            self.words.reserve_exact(more);
        }
        let at = index * stride;
        let len = self.words.len();
        self.words.resize(len + stride, 0);
        self.words.copy_within(at..len, at + stride);
        self.words[at..at + stride].copy_from_slice(&event.words);
        self.adopt_strings(layout, index, &event.heap);
        true
    }

    /// Copies the strings of event `index` from `heap`, where its words point, to this heap.
    fn adopt_strings(&mut self, layout: &Layout, index: usize, heap: &[u8]) {
        let start = index * layout.stride();
        for column in (0..layout.columns.len()).filter(|c| layout.is_string(*c)) {
            let word = self.words[start + layout.column_at(column)];
            let (from, len) = ((word >> 32) as usize, (word & 0xffff_ffff) as usize);
            if len == 0 {
                continue;
            }
            let at = self.heap.len() as u64;
            self.heap.extend_from_slice(&heap[from..from + len]);
            self.words[start + layout.column_at(column)] = at << 32 | len as u64;
        }
    }

    /// Events `from..to` as a buffer of their own, without garbage in the heap.
    pub fn slice(&self, layout: &Layout, from: usize, to: usize) -> Self {
        let stride = layout.stride();
        let mut part = Self { words: self.words[from * stride..to * stride].to_vec(), heap: Vec::new() };
        if !self.heap.is_empty() {
            for index in 0..to - from {
                part.adopt_strings(layout, index, &self.heap);
            }
        }
        part
    }

    /// Drops the first `count` events.
    pub fn drop_first(&mut self, layout: &Layout, count: usize) {
        if count > 0 {
            *self = self.slice(layout, count, self.len(layout));
        }
    }

    /// Appends the stored form: number of events, bytes of heap, words, heap.
    pub fn encode(&self, layout: &Layout, out: &mut Vec<u8>) {
        out.extend((self.len(layout) as u32).to_le_bytes());
        out.extend((self.heap.len() as u32).to_le_bytes());
        for word in &self.words {
            out.extend(word.to_le_bytes());
        }
        out.extend(&self.heap);
    }

    /// Reads the stored form and advances `bytes` past it. `None` when it is cut short.
    pub fn decode(layout: &Layout, bytes: &mut &[u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (heap, rest) = rest.split_first_chunk::<4>()?;
        let (len, heap) = (u32::from_le_bytes(*len) as usize, u32::from_le_bytes(*heap) as usize);
        let (words, rest) = rest.split_at_checked(len * layout.stride() * 8)?;
        let (heap, rest) = rest.split_at_checked(heap)?;
        *bytes = rest;
        let words: Vec<u64> = words.as_chunks::<8>().0.iter().map(|c| u64::from_le_bytes(*c)).collect();
        let strings = (0..layout.columns.len()).filter(|c| layout.is_string(*c)).map(|c| layout.column_at(c));
        let strings: Vec<usize> = strings.collect();
        let ends = |event: &[u64], at: usize| (event[at] >> 32) + (event[at] & 0xffff_ffff);
        let is_within = |event: &[u64]| strings.iter().all(|at| ends(event, *at) <= heap.len() as u64);
        words.chunks_exact(layout.stride()).all(is_within).then(|| Self { words, heap: heap.to_vec() })
    }
}
