//! Rectangles of addresses × numbers (ports, ICMP messages) as disjoint ones that cover the same.

use super::compile::Span;
use std::collections::BTreeMap;

/// The highest number.
const LAST: u32 = u16::MAX as u32;

/// Addresses and numbers, first to last.
pub type Rectangle = (Span, (u16, u16));

/// Returns disjoint rectangles that cover what `rectangles` cover, sorted; `None` if more than `most` are needed.
/// None of them has a neighbour, in either direction, with which it could be joined to one.
pub fn disjoint(mut rectangles: Vec<Rectangle>, most: usize) -> Option<Vec<Rectangle>> {
    rectangles.sort_unstable();
    let mut done = Vec::with_capacity(rectangles.len().min(most));
    let mut rest = rectangles.as_slice();
    while let Some(&((_, mut reach), _)) = rest.first() {
        let apart = rest.iter().position(|&((first, last), _)| {
            let apart = reach.checked_add(1).is_some_and(|next| next < first);
            reach = reach.max(last);
            apart
        });
        // Addresses without a gap between them. Most rules are about networks of their own: those are done.
        let (group, others) = rest.split_at(apart.unwrap_or(rest.len()));
        match group {
            [one] => done.push(*one),
            many => done.extend(sweep(many, most)?),
        }
        if done.len() > most {
            return None;
        }
        rest = others;
    }
    Some(done)
}

/// A line sweeps over the addresses. At each one the numbers that are covered form ranges with gaps between them; a
/// result is such a range from the address where it appears to the one where it grows, shrinks or vanishes. A step
/// touches only the ranges that change, so the time is that of sorting, of one descent in a tree for each rectangle,
/// and of the results.
fn sweep(rectangles: &[Rectangle], most: usize) -> Option<Vec<Rectangle>> {
    let mut events = Vec::with_capacity(2 * rectangles.len());
    for &((first, last), (low, high)) in rectangles {
        let numbers = (u32::from(low), u32::from(high));
        events.push((first, true, numbers));
        // The last address of all has no next one: such rectangles end with the sweep.
        events.extend(last.checked_add(1).map(|next| (next, false, numbers)));
    }
    // What begins comes before what ends at the same address: otherwise ranges would end there and begin anew.
    events.sort_unstable_by_key(|&(at, begins, _)| (at, !begins));
    let mut line = Line { tree: Tree::new(rectangles), open: BTreeMap::new(), done: Vec::new(), most };
    for (at, begins, numbers) in events {
        if begins {
            line.begin(numbers, at)?;
        } else {
            line.end(numbers, at)?;
        }
    }
    for (low, (high, since)) in std::mem::take(&mut line.open) {
        line.push((since, u128::MAX), (low, high))?;
    }
    line.done.sort_unstable();
    Some(line.done)
}

/// The state of the sweep.
struct Line {
    /// How often each number is covered.
    tree: Tree,
    /// The covered ranges: first number to last number and the address since which they are so.
    open: BTreeMap<u32, (u32, u128)>,
    done: Vec<Rectangle>,
    most: usize,
}

impl Line {
    fn begin(&mut self, (low, high): (u32, u32), at: u128) -> Option<()> {
        self.tree.change((low, high), true);
        let inside = self.open.range(..=low).next_back().is_some_and(|(_, (end, _))| *end >= high);
        if inside {
            return Some(());
        }
        let (mut first, mut last) = (low, high);
        // All that overlap the new range or lie beside it become one with it.
        while let Some((&begin, &(end, since))) = self.open.range(..=high + 1).next_back()
            && end + 1 >= low
        {
            self.close((begin, end), since, at)?;
            (first, last) = (first.min(begin), last.max(end));
        }
        self.open.insert(first, (last, at));
        Some(())
    }

    fn end(&mut self, (low, high): (u32, u32), at: u128) -> Option<()> {
        self.tree.change((low, high), false);
        let still = self.tree.covered((low, high));
        if still == [(low, high)] {
            return Some(());
        }
        // It was covered until now, so exactly one range contains it, of which both sides are not concerned.
        let (&begin, &(end, since)) = self.open.range(..=low).next_back()?;
        self.close((begin, end), since, at)?;
        let mut ranges = Vec::with_capacity(still.len() + 2);
        if begin < low {
            ranges.push((begin, low - 1));
        }
        still.into_iter().for_each(|range| push_joined(&mut ranges, range));
        if high < end {
            push_joined(&mut ranges, (high + 1, end));
        }
        self.open.extend(ranges.into_iter().map(|(low, high)| (low, (high, at))));
        Some(())
    }

    fn close(&mut self, (low, high): (u32, u32), since: u128, at: u128) -> Option<()> {
        self.open.remove(&low);
        if since < at { self.push((since, at - 1), (low, high)) } else { Some(()) }
    }

    fn push(&mut self, addresses: Span, (low, high): (u32, u32)) -> Option<()> {
        let number = |number| u16::try_from(number).ok();
        self.done.push((addresses, (number(low)?, number(high)?)));
        (self.done.len() <= self.most).then_some(())
    }
}

fn push_joined(ranges: &mut Vec<(u32, u32)>, range: (u32, u32)) {
    match ranges.last_mut() {
        Some(last) if last.1 + 1 == range.0 => last.1 = range.1,
        _ => ranges.push(range),
    }
}

/// A segment tree over the ranges between the numbers at which rectangles begin or end.
struct Tree {
    /// The first number of each leaf, and the end of the last one.
    points: Vec<u32>,
    nodes: Vec<Node>,
}

#[derive(Clone, Copy, Default)]
struct Node {
    /// How many ranges cover all of the node and not all of its parent.
    count: u32,
    /// All of the node is covered, by these ranges or those below.
    all: bool,
    /// Some of it is.
    some: bool,
}

/// A node: its place in the array, and the leaves below it.
type At = (usize, usize, usize);

impl Tree {
    fn new(rectangles: &[Rectangle]) -> Self {
        let ends = |&(_, (low, high)): &Rectangle| [u32::from(low), u32::from(high) + 1];
        let mut points: Vec<u32> = rectangles.iter().flat_map(ends).chain([0, LAST + 1]).collect();
        points.sort_unstable();
        points.dedup();
        let leaves = points.len() - 1;
        Self { points, nodes: vec![Node::default(); 2 * leaves.next_power_of_two()] }
    }

    fn root(&self) -> At {
        (1, 0, self.points.len() - 1)
    }

    /// The numbers of a node, its end not included.
    fn numbers(&self, (_, first, end): At) -> (u32, u32) {
        (self.points[first], self.points[end])
    }

    /// Adds or takes away a range, whose ends are points.
    fn change(&mut self, range: (u32, u32), add: bool) {
        self.change_at(self.root(), range, add);
    }

    fn change_at(&mut self, at: At, range: (u32, u32), add: bool) {
        let (begin, end) = self.numbers(at);
        if range.0 >= end || range.1 < begin {
            return;
        }
        let place = at.0;
        if range.0 <= begin && end - 1 <= range.1 {
            let count = &mut self.nodes[place].count;
            *count = if add { *count + 1 } else { *count - 1 };
        } else {
            for child in children(at) {
                self.change_at(child, range, add);
            }
        }
        let below = if at.2 - at.1 == 1 {
            [Node::default(); 2]
        } else {
            children(at).map(|(child, ..)| self.nodes[child])
        };
        let node = &mut self.nodes[place];
        node.all = node.count > 0 || below.iter().all(|child| child.all);
        node.some = node.count > 0 || below.iter().any(|child| child.some);
    }

    /// The covered ranges within a range.
    fn covered(&self, range: (u32, u32)) -> Vec<(u32, u32)> {
        let mut covered = Vec::new();
        self.covered_at(self.root(), range, &mut covered);
        covered
    }

    fn covered_at(&self, at: At, range: (u32, u32), covered: &mut Vec<(u32, u32)>) {
        let ((begin, end), node) = (self.numbers(at), self.nodes[at.0]);
        if !node.some || range.0 >= end || range.1 < begin {
            return;
        }
        if node.all {
            push_joined(covered, (begin.max(range.0), (end - 1).min(range.1)));
        } else {
            children(at).into_iter().for_each(|child| self.covered_at(child, range, covered));
        }
    }
}

/// The halves of a node with at least two leaves.
fn children((place, first, end): At) -> [At; 2] {
    let middle = first.midpoint(end);
    [(2 * place, first, middle), (2 * place + 1, middle, end)]
}
