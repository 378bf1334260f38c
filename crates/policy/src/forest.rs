//! All prefixes that cover a value, out of many, in logarithmic time: for address ranges and for the starts of texts.
//!
//! Prefixes sorted in their natural order form a forest: whatever covers a value is the last prefix that is not after
//! the value, or one of that prefix's ancestors.

use crate::{
    compare::{Site, holds},
    matcher::Block,
};

/// Something that covers the values that begin with it. Its order puts a prefix before everything that it covers.
pub(crate) trait Prefix: Ord {
    type Value: ?Sized;
    fn covers(&self, value: &Self::Value) -> bool;
    fn is_after(&self, value: &Self::Value) -> bool;
    fn includes(&self, other: &Self) -> bool;
}

impl Prefix for Box<[u8]> {
    type Value = [u8];

    fn covers(&self, value: &[u8]) -> bool {
        value.starts_with(self)
    }

    fn is_after(&self, value: &[u8]) -> bool {
        **self > *value
    }

    fn includes(&self, other: &Self) -> bool {
        other.starts_with(self)
    }
}

impl Prefix for Block {
    /// The block of a single address.
    type Value = Self;

    fn covers(&self, value: &Self) -> bool {
        self.v4 == value.v4 && Self::covers(self, value.bits)
    }

    fn is_after(&self, value: &Self) -> bool {
        self > value
    }

    fn includes(&self, other: &Self) -> bool {
        self.v4 == other.v4 && self.len <= other.len && Self::covers(self, other.bits)
    }
}

/// Prefixes, each with what belongs to it.
#[derive(Debug)]
pub(crate) struct Forest<P, T> {
    nodes: Box<[Node<P, T>]>,
}

#[derive(Debug)]
struct Node<P, T> {
    prefix: P,
    content: T,
    /// Index of the longest other prefix that includes this one.
    parent: Option<u32>,
}

impl<P: Prefix, T> Forest<P, T> {
    /// The prefixes must differ from one another.
    pub(crate) fn new(mut prefixes: Vec<(P, T)>) -> Self {
        prefixes.sort_by(|a, b| a.0.cmp(&b.0));
        let mut nodes: Vec<Node<P, T>> = Vec::with_capacity(prefixes.len());
        for (prefix, content) in prefixes {
            let mut parent = nodes.len().checked_sub(1);
            while let Some(index) = parent
                && !nodes[index].prefix.includes(&prefix)
            {
                parent = nodes[index].parent.map(|parent| parent as usize);
            }
            nodes.push(Node {
                prefix,
                content,
                parent: parent.map(|index| index as u32),
            });
        }
        Self {
            nodes: nodes.into(),
        }
    }

    /// What belongs to the prefixes that cover the value, the longest first. `site` is the place that asks.
    pub(crate) fn covering<'a>(
        &'a self,
        value: &'a P::Value,
        site: Site,
    ) -> impl Iterator<Item = &'a T> {
        let last = self
            .nodes
            .partition_point(|node| !node.prefix.is_after(value))
            .checked_sub(1);
        let chain = std::iter::successors(last, |index| {
            self.nodes[*index].parent.map(|parent| parent as usize)
        });
        let covering = move |index: &usize| holds(site, self.nodes[*index].prefix.covers(value));
        chain
            .filter(covering)
            .map(|index| &self.nodes[index].content)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_covering_prefixes_are_found_the_longest_first() {
        let texts = ["", "a", "ab", "abc", "abd", "b", "ba"];
        let forest = Forest::new(
            texts
                .iter()
                .map(|text| (Box::from(text.as_bytes()), *text))
                .collect(),
        );
        for value in ["", "a", "abcd", "abz", "ac", "bb", "c", "aa", "abd"] {
            let found: Vec<&str> = forest
                .covering(value.as_bytes(), Site::IndexPrincipalPrefix)
                .copied()
                .collect();
            let mut expected: Vec<&str> = texts
                .iter()
                .copied()
                .filter(|text| value.starts_with(text))
                .collect();
            expected.sort_by_key(|text| std::cmp::Reverse(text.len()));
            assert_eq!(found, expected, "{value:?}");
        }
    }
}
