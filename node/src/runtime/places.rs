//! Which of a stream's mutations have been answered, for its flushes.

use std::collections::VecDeque;

/// Places in the order in which mutations arrived, from zero.
#[derive(Debug, Default)]
pub struct Places {
    /// The first place that has no answer.
    first: u64,
    /// From there on: whether it was answered.
    settled: VecDeque<bool>,
}

impl Places {
    /// Takes the next place.
    pub fn take(&mut self) -> u64 {
        let place = self.next();
        self.settled.push_back(false);
        place
    }

    /// The place that will be taken next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.first + self.settled.len() as u64
    }

    /// Everything before this place was answered.
    #[must_use]
    pub fn settled_before(&self) -> u64 {
        self.first
    }

    /// Notes that the mutation at `place` was answered.
    pub fn settle(&mut self, place: u64) {
        let at = place.checked_sub(self.first);
        let at = at.and_then(|at| usize::try_from(at).ok());
        if let Some(settled) = at.and_then(|at| self.settled.get_mut(at)) {
            *settled = true;
        }
        while self.settled.pop_front_if(|settled| *settled).is_some() {
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_counts_as_settled_before_what_came_earlier_is() {
        let mut places = Places::default();
        let taken: Vec<u64> = (0..4).map(|_| places.take()).collect();
        assert_eq!(taken, [0, 1, 2, 3]);
        places.settle(1);
        places.settle(2);
        assert_eq!(places.settled_before(), 0);
        places.settle(0);
        assert_eq!((places.settled_before(), places.next()), (3, 4));
        // An answer that comes twice changes nothing.
        places.settle(0);
        places.settle(3);
        places.settle(9);
        assert_eq!((places.settled_before(), places.take()), (4, 4));
    }
}
