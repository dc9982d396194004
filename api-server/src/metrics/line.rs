//! How a line looks.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use vmm::telemetry::{Entry, MetricGroup, Registry, Spread, Value};

use super::groups::{GROUPS, Shape};

/// More numbers than any group has.
const MOST_NUMBERS: usize = 64;
/// Longest number, `u64::MAX`.
const DIGITS: usize = 20;
/// `"":,` around a name or a number.
const MARKS: usize = 4;
/// `{"min_us":,"max_us":,"sum_us":}` and its numbers.
const SPREAD: usize = 32 + 3 * DIGITS;

/// What every line begins with, after its time.
#[derive(Debug, Default)]
pub(super) struct Head(String);

impl Head {
    /// With the machine's name and the operator's properties, where they are wanted.
    pub(super) fn new(id: Option<&str>, properties: Option<&BTreeMap<String, String>>) -> Self {
        let mut head = String::new();
        if let Some(id) = id {
            head.push_str(",\"id\":");
            head.push_str(&serde_json::Value::from(id).to_string());
        }
        if let Some(properties) = properties {
            head.push_str(",\"properties\":");
            // Strings under strings cannot fail.
            head.push_str(&serde_json::to_string(properties).unwrap_or_else(|_| "{}".to_owned()));
        }
        Self(head)
    }
}

/// A line and what is needed to make it. Filling it allocates nothing: room is made beforehand.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    text: Text,
    sums: Vec<Value>,
}

impl Buffer {
    /// Makes room for a line of everything in `registry`. Not for signal handlers.
    pub(super) fn make_room(&mut self, head: &Head, registry: &Registry) {
        self.sums.reserve(MOST_NUMBERS.saturating_sub(self.sums.len()));
        let groups = GROUPS.iter().map(|group| {
            let each = registry
                .family(group.name)
                .map(|entry| group.name.len() + entry.id().map_or(0, str::len) + MARKS + room_for(entry.group()));
            each.sum::<usize>() + group.name.len() + MARKS + room_for(group.blank)
        });
        let len = "{\"utc_timestamp_ms\":}\n".len() + DIGITS + head.0.len() + groups.sum::<usize>();
        self.text.bytes.reserve(len.saturating_sub(self.text.bytes.len()));
    }

    /// The line that was written last.
    pub(super) fn line(&self) -> &[u8] {
        &self.text.bytes
    }

    /// Writes a line. False if there was no room.
    pub(super) fn write(&mut self, head: &Head, registry: &Registry, now_ms: u64) -> bool {
        let Self { text, sums } = self;
        text.bytes.clear();
        // The only error is that there is no room.
        write_line(text, sums, head, registry, now_ms).is_ok()
    }
}

fn room_for(group: &dyn MetricGroup) -> usize {
    let mut room = MARKS;
    group.v1(&mut |name, metric| {
        room += name.len() + MARKS;
        room += if matches!(Value::zero(metric), Value::Spread(_)) { SPREAD } else { DIGITS };
    });
    room
}

fn write_line(text: &mut Text, sums: &mut Vec<Value>, head: &Head, registry: &Registry, now_ms: u64) -> fmt::Result {
    write!(text, "{{\"utc_timestamp_ms\":{now_ms}{}", head.0)?;
    for group in GROUPS {
        match group.shape {
            Shape::One | Shape::Process => {
                write!(text, ",\"{}\":", group.name)?;
                match registry.family(group.name).last() {
                    Some(entry) => text.numbers(|see| entry.read(see))?,
                    None => text.numbers(|see| zeroes(group.blank, see))?,
                }
            }
            Shape::Each => {
                for entry in registry.family(group.name) {
                    write!(text, ",\"{}_{}\":", group.name, entry.id().unwrap_or(""))?;
                    text.numbers(|see| entry.read(see))?;
                }
            }
            Shape::EachAndSum | Shape::Sum => {
                let mut written = Ok(());
                start(sums, group.blank);
                for entry in registry.family(group.name) {
                    if group.shape == Shape::EachAndSum {
                        written =
                            written.and_then(|()| write!(text, ",\"{}_{}\":", group.name, entry.id().unwrap_or("")));
                        written = written.and_then(|()| text.numbers(|see| read_into(&entry, sums, group.shape, see)));
                    } else {
                        read_into(&entry, sums, group.shape, &mut |_, _| ());
                    }
                }
                written?;
                write!(text, ",\"{}\":", group.name)?;
                let mut sums = sums.iter();
                text.numbers(|see| {
                    group.blank.v1(&mut |name, metric| {
                        see(name, sums.next().copied().unwrap_or(Value::zero(metric)));
                    })
                })?;
            }
        }
    }
    text.write_str("}\n")
}

/// Shows the names of a group with zeroes.
fn zeroes(blank: &dyn MetricGroup, see: &mut dyn FnMut(&'static str, Value)) {
    blank.v1(&mut |name, metric| see(name, Value::zero(metric)));
}

fn start(sums: &mut Vec<Value>, blank: &dyn MetricGroup) {
    sums.clear();
    blank.v1(&mut |_, metric| {
        // Never more than there is room for.
        if sums.len() < sums.capacity() {
            sums.push(Value::zero(metric));
        }
    });
}

/// Shows the numbers of `entry` and adds them to `sums`.
fn read_into(entry: &Entry, sums: &mut [Value], shape: Shape, see: &mut dyn FnMut(&'static str, Value)) {
    let mut sums = sums.iter_mut();
    entry.read(&mut |name, value| {
        see(name, value);
        match (sums.next(), value) {
            (Some(Value::Number(sum)), Value::Number(number)) => *sum = sum.wrapping_add(number),
            (Some(Value::Spread(sum)), Value::Spread(spread)) => *sum = together(*sum, spread, shape),
            _ => {}
        }
    });
}

fn together(sum: Spread, one: Spread, shape: Shape) -> Spread {
    let sum_us = sum.sum_us.wrapping_add(one.sum_us);
    match shape {
        Shape::EachAndSum => Spread { sum_us, ..Spread::default() },
        _ if sum == Spread::default() => one,
        _ if one == Spread::default() => sum,
        _ => Spread { min_us: sum.min_us.min(one.min_us), max_us: sum.max_us.max(one.max_us), sum_us },
    }
}

/// A text that does not grow.
#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
}

impl Text {
    /// Writes the numbers that `show` shows as a JSON object.
    fn numbers(&mut self, show: impl FnOnce(&mut dyn FnMut(&'static str, Value))) -> fmt::Result {
        let mut written = Ok(());
        let mut before = '{';
        show(&mut |name, value| {
            written = written.and_then(|()| match value {
                Value::Number(number) => write!(self, "{before}\"{name}\":{number}"),
                Value::Spread(Spread { min_us, max_us, sum_us }) => {
                    write!(self, "{before}\"{name}\":{{\"min_us\":{min_us},\"max_us\":{max_us},\"sum_us\":{sum_us}}}")
                }
            });
            before = ',';
        });
        written?;
        self.write_str("}")
    }
}

impl Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if part.len() > self.bytes.capacity() - self.bytes.len() {
            return Err(fmt::Error);
        }
        self.bytes.extend_from_slice(part.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
