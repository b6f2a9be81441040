//! Connected components by a disjoint-set forest (Tarjan 1975), with union by size and halved paths.

/// A partition of `0..n`, at first into single elements.
pub struct Disjoint {
    parent: Vec<u32>,
    size: Vec<u32>,
}

impl Disjoint {
    /// `n` components of one element.
    pub fn new(n: usize) -> Self {
        Self { parent: (0..n as u32).collect(), size: vec![1; n] }
    }

    /// The element that stands for the component of `x`.
    pub fn root(&mut self, mut x: u32) -> u32 {
        while self.parent[x as usize] != x {
            let above = self.parent[self.parent[x as usize] as usize];
            self.parent[x as usize] = above;
            x = above;
        }
        x
    }

    /// Makes one component of those of `a` and `b`.
    pub fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        if a != b {
            let (small, large) = if self.size[a as usize] < self.size[b as usize] { (a, b) } else { (b, a) };
            self.parent[small as usize] = large;
            self.size[large as usize] += self.size[small as usize];
        }
    }

    /// The components, members in rising order, ordered by their first.
    pub fn components(mut self) -> Vec<Vec<u32>> {
        let mut number = vec![u32::MAX; self.parent.len()];
        let mut all: Vec<Vec<u32>> = Vec::new();
        for x in 0..self.parent.len() as u32 {
            let root = self.root(x) as usize;
            if number[root] == u32::MAX {
                number[root] = all.len() as u32;
                all.push(Vec::new());
            }
            all[number[root] as usize].push(x);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chain_is_one_component() {
        let mut sets = Disjoint::new(6);
        for (a, b) in [(4, 2), (2, 5), (0, 3), (5, 4)] {
            sets.join(a, b);
        }
        assert_eq!(sets.components(), [vec![0, 3], vec![1], vec![2, 4, 5]]);
        assert_eq!(Disjoint::new(0).components(), [[0; 0]; 0]);
    }

    proptest! {
        /// Beside labels that are spread until nothing changes, and whatever the order of the joins.
        #[test]
        fn components_are_those_of_the_graph(edges in prop::collection::vec((0u32..40, 0u32..40), 0..60)) {
            let mut label: Vec<u32> = (0..40).collect();
            for _ in 0..40 {
                for &(a, b) in &edges {
                    let least = label[a as usize].min(label[b as usize]);
                    (label[a as usize], label[b as usize]) = (least, least);
                }
            }
            let joined = |edges: &[(u32, u32)]| {
                let mut sets = Disjoint::new(40);
                edges.iter().for_each(|&(a, b)| sets.join(a, b));
                sets.components()
            };
            let found = joined(&edges);
            prop_assert_eq!(found.concat().len(), 40);
            for members in &found {
                prop_assert!(members.iter().all(|&x| label[x as usize] == members[0]));
            }
            prop_assert_eq!(found.len(), (0..40).filter(|&x| label[x as usize] == x).count());
            let backwards: Vec<_> = edges.iter().rev().map(|&(a, b)| (b, a)).collect();
            prop_assert_eq!(joined(&backwards), found);
        }
    }
}
