//! An index of key intervals that answers "which of them hold this key".
//!
//! A treap ordered by (start, end); each node also knows which interval of its
//! subtree reaches furthest, so a search skips every subtree that ends before
//! the key. Equal intervals share one node: a thousand watchers of one prefix
//! are one node with a thousand slots. A look-up costs O(log n) for each
//! distinct interval it finds, plus the slots it reports; an insertion or a
//! removal costs O(log n). Priorities are drawn at random so that a client
//! cannot choose its ranges to make the tree deep.
//!
//! The tree lives in one vector with a free list: no node is a heap allocation
//! of its own, and the code needs neither `unsafe` nor reference counts.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use bytes::Bytes;

/// "No node".
const NIL: u32 = u32::MAX;

struct Node {
    start: Bytes,
    /// The first key after the interval; `None` for no end.
    end: Option<Bytes>,
    slots: BTreeSet<u32>,
    priority: u32,
    left: u32,
    right: u32,
    /// The node of this subtree (itself included) with the greatest end.
    furthest: u32,
}

/// Intervals of keys, each with the slots that were added to it.
pub(super) struct Spans {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
}

impl Default for Spans {
    fn default() -> Spans {
        Spans {
            nodes: Vec::new(),
            free: Vec::new(),
            root: NIL,
        }
    }
}

impl Spans {
    /// Adds `slot` to the interval `[start, end)`.
    pub(super) fn insert(&mut self, start: &Bytes, end: &Option<Bytes>, slot: u32) {
        if let Some(at) = self.find(start, end) {
            self.node_mut(at).slots.insert(slot);
            return;
        }
        let new = self.allocate(Node {
            start: start.clone(),
            end: end.clone(),
            slots: BTreeSet::from([slot]),
            priority: rand::random(),
            left: NIL,
            right: NIL,
            furthest: NIL,
        });
        self.update(new);
        self.root = self.insert_below(self.root, new);
    }

    /// Takes `slot` out of the interval `[start, end)`; nothing happens when
    /// it is not there.
    pub(super) fn remove(&mut self, start: &Bytes, end: &Option<Bytes>, slot: u32) {
        let Some(at) = self.find(start, end) else {
            return;
        };
        let slots = &mut self.node_mut(at).slots;
        slots.remove(&slot);
        if !slots.is_empty() {
            return;
        }
        self.root = self.remove_below(self.root, at);
        let node = self.node_mut(at);
        node.start = Bytes::new();
        node.end = None;
        self.free.push(at);
    }

    /// Calls `visit` with the slots of every interval that holds `key`.
    pub(super) fn visit(&self, key: &[u8], visit: &mut impl FnMut(u32)) {
        self.visit_below(self.root, key, visit);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.root == NIL
    }

    fn visit_below(&self, at: u32, key: &[u8], visit: &mut impl FnMut(u32)) {
        if at == NIL {
            return;
        }
        let node = self.node(at);
        if !is_before_end(key, &self.node(node.furthest).end) {
            return;
        }
        self.visit_below(node.left, key, visit);
        if *node.start <= *key {
            if is_before_end(key, &node.end) {
                node.slots.iter().for_each(|slot| visit(*slot));
            }
            self.visit_below(node.right, key, visit);
        }
    }

    fn find(&self, start: &Bytes, end: &Option<Bytes>) -> Option<u32> {
        let mut at = self.root;
        while at != NIL {
            let node = self.node(at);
            at = match compare((start, end), (&node.start, &node.end)) {
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
                Ordering::Equal => return Some(at),
            };
        }
        None
    }

    /// Puts the node `new` into the subtree `at` and returns its new root.
    /// The depth, and so the recursion, is about 2 ln n.
    fn insert_below(&mut self, at: u32, new: u32) -> u32 {
        if at == NIL {
            return new;
        }
        let (node, fresh) = (self.node(at), self.node(new));
        let goes_left =
            compare((&fresh.start, &fresh.end), (&node.start, &node.end)) == Ordering::Less;
        let child = if goes_left { node.left } else { node.right };
        let child = self.insert_below(child, new);
        let node = self.node_mut(at);
        if goes_left {
            node.left = child;
        } else {
            node.right = child;
        }
        if self.node(child).priority > self.node(at).priority {
            self.rotate_up(at, child, goes_left)
        } else {
            self.update(at);
            at
        }
    }

    /// Makes `child` the root of the subtree whose root was `at`.
    fn rotate_up(&mut self, at: u32, child: u32, is_left: bool) -> u32 {
        if is_left {
            self.node_mut(at).left = self.node(child).right;
            self.node_mut(child).right = at;
        } else {
            self.node_mut(at).right = self.node(child).left;
            self.node_mut(child).left = at;
        }
        self.update(at);
        self.update(child);
        child
    }

    /// Takes the node `gone` out of the subtree `at` and returns its new root.
    fn remove_below(&mut self, at: u32, gone: u32) -> u32 {
        debug_assert_ne!(at, NIL, "the node was found before");
        if at == gone {
            return self.merge(self.node(at).left, self.node(at).right);
        }
        let (node, target) = (self.node(at), self.node(gone));
        let is_left =
            compare((&target.start, &target.end), (&node.start, &node.end)) == Ordering::Less;
        if is_left {
            let child = self.remove_below(self.node(at).left, gone);
            self.node_mut(at).left = child;
        } else {
            let child = self.remove_below(self.node(at).right, gone);
            self.node_mut(at).right = child;
        }
        self.update(at);
        at
    }

    /// Joins two subtrees, all of `left` before all of `right`.
    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NIL || right == NIL {
            return if left == NIL { right } else { left };
        }
        if self.node(left).priority > self.node(right).priority {
            let joined = self.merge(self.node(left).right, right);
            self.node_mut(left).right = joined;
            self.update(left);
            left
        } else {
            let joined = self.merge(left, self.node(right).left);
            self.node_mut(right).left = joined;
            self.update(right);
            right
        }
    }

    /// Recomputes `furthest` of a node whose children are right.
    fn update(&mut self, at: u32) {
        let node = self.node(at);
        let mut furthest = at;
        for child in [node.left, node.right] {
            if child == NIL {
                continue;
            }
            let candidate = self.node(child).furthest;
            let ends = (&self.node(candidate).end, &self.node(furthest).end);
            if compare_ends(ends.0, ends.1) == Ordering::Greater {
                furthest = candidate;
            }
        }
        self.node_mut(at).furthest = furthest;
    }

    fn allocate(&mut self, node: Node) -> u32 {
        if let Some(at) = self.free.pop() {
            *self.node_mut(at) = node;
            return at;
        }
        let at = u32::try_from(self.nodes.len()).expect("memory ends before 2^32 nodes");
        self.nodes.push(node);
        at
    }

    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }
}

fn is_before_end(key: &[u8], end: &Option<Bytes>) -> bool {
    end.as_ref().is_none_or(|end| *key < **end)
}

fn compare(one: (&Bytes, &Option<Bytes>), other: (&Bytes, &Option<Bytes>)) -> Ordering {
    one.0
        .cmp(other.0)
        .then_with(|| compare_ends(one.1, other.1))
}

/// No end is the greatest of all ends.
fn compare_ends(one: &Option<Bytes>, other: &Option<Bytes>) -> Ordering {
    match (one, other) {
        (Some(one), Some(other)) => one.cmp(other),
        (one, other) => one.is_none().cmp(&other.is_none()),
    }
}
