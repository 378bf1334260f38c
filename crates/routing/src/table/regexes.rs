//! Paths by regular expression: only those whose literal start the path has are tried, and those together.

use hashbrown::HashMap;
use regex::bytes::RegexSet;

use crate::pattern::{self, Pattern, PatternError};

/// Expressions that are put into one set; smaller sets are made where one becomes too large.
const SET_LEN_MAX: usize = 64;

/// Expressions, each with what belongs to it.
#[derive(Debug)]
pub(super) struct Regexes<T> {
    /// Sorted by their prefix; a forest as prefixes include one another.
    nodes: Vec<Node>,
    values: Vec<T>,
}

/// Expressions that begin with the same text.
#[derive(Debug)]
struct Node {
    prefix: Box<str>,
    /// Index of the longest other prefix that includes this one.
    parent: Option<usize>,
    sets: Vec<Set>,
}

#[derive(Debug)]
enum Set {
    One(Pattern, usize),
    Many(RegexSet, Vec<usize>),
}

impl<T> Default for Regexes<T> {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl<T> Regexes<T> {
    /// Compiles expressions, all different. What cannot be compiled is given to `refuse`.
    pub(super) fn new(
        expressions: Vec<(&str, T)>,
        mut refuse: impl FnMut(&str, PatternError),
    ) -> Self {
        let mut by_prefix: HashMap<Box<str>, Vec<(&str, usize)>> = HashMap::new();
        let mut values = Vec::with_capacity(expressions.len());
        for (text, value) in expressions {
            let prefix = pattern::literal_prefix(text).into_boxed_str();
            by_prefix
                .entry(prefix)
                .or_default()
                .push((text, values.len()));
            values.push(value);
        }
        let mut prefixes: Vec<_> = by_prefix.into_iter().collect();
        prefixes.sort_by(|a, b| a.0.cmp(&b.0));
        let mut nodes: Vec<Node> = Vec::with_capacity(prefixes.len());
        for (prefix, expressions) in prefixes {
            let mut parent = nodes.len().checked_sub(1);
            while let Some(index) = parent
                && !prefix.starts_with(&*nodes[index].prefix)
            {
                parent = nodes[index].parent;
            }
            let mut sets = Vec::new();
            for chunk in expressions.chunks(SET_LEN_MAX) {
                compile(chunk, &mut sets, &mut refuse);
            }
            nodes.push(Node {
                prefix,
                parent,
                sets,
            });
        }
        Self { nodes, values }
    }

    /// Calls `found` with what belongs to each expression that matches the whole path.
    pub(super) fn matching<'a>(&'a self, path: &str, mut found: impl FnMut(&'a T)) {
        let after = self.nodes.partition_point(|node| &*node.prefix <= path);
        let mut next = after.checked_sub(1);
        while let Some(index) = next {
            let node = &self.nodes[index];
            next = node.parent;
            if path.starts_with(&*node.prefix) {
                for set in &node.sets {
                    set.matching(path.as_bytes(), |index| found(&self.values[index]));
                }
            }
        }
    }
}

impl Set {
    fn matching(&self, path: &[u8], mut found: impl FnMut(usize)) {
        match self {
            Self::One(pattern, index) if pattern.matches(path) => found(*index),
            Self::One(..) => {}
            Self::Many(set, indexes) => {
                set.matches(path).iter().for_each(|at| found(indexes[at]));
            }
        }
    }
}

/// Compiles expressions together, in halves where they are too large together.
fn compile(
    expressions: &[(&str, usize)],
    sets: &mut Vec<Set>,
    refuse: &mut impl FnMut(&str, PatternError),
) {
    if let [(text, index)] = expressions {
        match Pattern::new(text) {
            Ok(pattern) => sets.push(Set::One(pattern, *index)),
            Err(error) => refuse(text, error),
        }
        return;
    }
    let anchored: Result<Vec<String>, PatternError> = expressions
        .iter()
        .map(|(text, _)| pattern::anchored(text))
        .collect();
    match anchored.map(|anchored| pattern::set(&anchored)) {
        Ok(Ok(set)) => {
            let indexes = expressions.iter().map(|(_, index)| *index).collect();
            sets.push(Set::Many(set, indexes));
        }
        Ok(Err(_)) | Err(_) => {
            let (left, right) = expressions.split_at(expressions.len() / 2);
            compile(left, sets, refuse);
            compile(right, sets, refuse);
        }
    }
}
