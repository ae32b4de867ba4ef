//! One YAML document to an untyped value, as kubectl reads it, within a budget.
//!
//! The parser's own limits judge the form of a text: how many nodes it has, how many aliases for each anchor. A large file
//! is none of its business. What must be bounded is what aliases make of a small one, so the whole result is counted.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{alias_limits, budget, options};

/// What is left of the memory that the aliases of one file may take.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: Cell<usize>,
    /// Documents that were larger. What they took was given back, but their time was not.
    breaches: Cell<usize>,
    /// The length of the file in bytes.
    text_len: usize,
    duplicates: RefCell<Vec<String>>,
}

impl Budget {
    /// For a file of this text. One without an anchor cannot be larger than it looks.
    pub(super) fn of(text: &str) -> Self {
        let most = if text.contains('&') {
            ALIASED_BYTES_MAX.saturating_add(text.len().saturating_mul(BYTES_PER_BYTE))
        } else {
            usize::MAX
        };
        Self {
            bytes: Cell::new(most),
            breaches: Cell::new(0),
            text_len: text.len(),
            duplicates: RefCell::default(),
        }
    }

    /// Keys that were there twice in one mapping since the last call.
    pub(super) fn take_duplicates(&self) -> Vec<String> {
        self.duplicates.take()
    }

    fn take<E: Error>(&self, bytes: usize) -> Result<(), E> {
        match self.bytes.get().checked_sub(bytes) {
            Some(left) => {
                self.bytes.set(left);
                Ok(())
            }
            None => Err(E::custom(TOO_LARGE)),
        }
    }
}

/// Why a document cannot be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// The line within the document, from 1.
    pub(super) line: u32,
    pub(super) reason: String,
}

/// Reads the only document of a text.
pub(super) fn read(text: &str, budget: &Budget) -> Result<Value, Unreadable> {
    if budget.breaches.get() >= BREACHES_MAX && text.contains('&') {
        return Err(Unreadable { line: 1, reason: TOO_LARGE.to_owned() });
    }
    let left = budget.bytes.get();
    // Aliases that a merge or a duplicate key leaves out take time and no memory.
    let replayed = REPLAYED_EVENTS_MAX.saturating_add(budget.text_len.saturating_mul(4));
    let options = options! {
        budget: budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_aliases: usize::MAX,
            max_anchors: usize::MAX,
            max_merge_keys: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_recorded_anchor_events: replayed,
            max_recorded_anchor_bytes: ALIASED_BYTES_MAX.saturating_add(budget.text_len.saturating_mul(4)),
            max_depth: DEPTH_MAX,
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: alias_limits! { max_total_replayed_events: replayed },
        emit_comments: false,
        // kubectl: the last one counts.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // YAML 1.1, as the parser of kubectl: 0644 is octal.
        legacy_octal_numbers: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |yaml| {
        Untyped(budget).deserialize(yaml)
    });
    read.map_err(|error| {
        let line = error.location().map_or(1, |at| u32::try_from(at.line()).unwrap_or(u32::MAX));
        // By its text: within an alias the parser wraps the error.
        let text = error.without_snippet().to_string();
        let is_bomb = text.contains("budget breached") || text.contains("alias replay limit");
        let is_deep = text.contains("Depth");
        let reason = if text.contains(TOO_LARGE) || (is_bomb && !is_deep) {
            TOO_LARGE.to_owned()
        } else {
            format!("not YAML: {}", text.lines().next().unwrap_or(""))
        };
        budget.bytes.set(left);
        // What is not read has no keys to warn of.
        budget.duplicates.borrow_mut().clear();
        budget.breaches.set(budget.breaches.get() + usize::from(reason == TOO_LARGE));
        Unreadable { line, reason }
    })
}

/// The whole number that a floating-point number is, if it is one.
pub(super) fn whole(value: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "it has no fraction and is in range")]
    (value.fract() == 0.0 && value.abs() < WHOLE_FLOAT_MAX).then_some(value as i64)
}

/// Any value.
#[derive(Clone, Copy)]
struct Untyped<'a>(&'a Budget);

impl<'de> DeserializeSeed<'de> for Untyped<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Untyped<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.scalar(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.scalar(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.scalar(value.into())
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Value, E> {
        self.scalar(value.to_string().into())
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Value, E> {
        self.scalar(value.to_string().into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        // kubectl writes JSON of it, in which 80.0 is 80.
        let number = whole(value).map(Number::from).or_else(|| Number::from_f64(value));
        self.scalar(number.map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.0.take(value.len())?;
        self.scalar(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.0.take(value.len())?;
        self.scalar(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.scalar(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        self.deserialize(from)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.0.take(VALUE_BYTES)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.0.take(MAP_BYTES)?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.0.take(VALUE_BYTES + key.len())?;
            let value = entries.next_value_seed(self)?;
            if map.contains_key(&key) && self.0.duplicates.borrow().len() < DUPLICATES_MAX {
                self.0.duplicates.borrow_mut().push(key.clone());
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

impl Untyped<'_> {
    fn scalar<E: Error>(self, value: Value) -> Result<Value, E> {
        self.0.take(VALUE_BYTES).map(|()| value)
    }
}

const TOO_LARGE: &str =
    "its aliases make it larger than a file of its length may be: write out what they repeat";
/// What aliases may add to any file.
const ALIASED_BYTES_MAX: usize = 64 << 20;
/// What a byte of text may become without aliases, in files of the usual form, with room.
const BYTES_PER_BYTE: usize = 32;
/// Events that are repeated for aliases of any file: about a second.
const REPLAYED_EVENTS_MAX: usize = 1_000_000;
/// Documents of one file that may turn out to be too large, each after some seconds.
const BREACHES_MAX: usize = 4;
/// Nesting: twice that of the deepest schemas in use, and far from the end of the stack.
const DEPTH_MAX: usize = 100;
/// A value and its place in a list.
const VALUE_BYTES: usize = size_of::<Value>();
/// A mapping: the first node of its tree.
const MAP_BYTES: usize = 640;
/// Duplicate keys that are named for one document.
const DUPLICATES_MAX: usize = 8;
/// Below it every whole number is exact.
const WHOLE_FLOAT_MAX: f64 = 9_007_199_254_740_992.0;
