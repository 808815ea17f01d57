//! Pure arithmetic of quorums, tested over every small case.

use mainstay_types::Lsn;

/// The `k`-th largest of `positions`: durable on at least `k` copies. Zero if there are fewer than `k`.
#[must_use]
pub fn quorum_position(positions: &mut [Lsn], k: usize) -> Lsn {
    if k == 0 || k > positions.len() {
        return Lsn::ZERO;
    }
    positions.sort_unstable_by(|a, b| b.cmp(a));
    positions[k - 1]
}

/// Answers that a promotion needs of `n` members with ack quorum `k`: with them, every set of `k` copies is met,
/// and no `k` others are left to commit anything.
#[must_use]
pub fn sight(n: usize, k: usize) -> usize {
    (n + 1).saturating_sub(k)
}

/// More than half of `n`.
#[must_use]
pub fn majority(n: usize) -> usize {
    n / 2 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every subset of up to six members, as bits.
    fn subsets(n: usize) -> impl Iterator<Item = u32> {
        0..(1_u32 << n)
    }

    #[test]
    fn sight_meets_every_commit_quorum_and_leaves_none() {
        for n in 1..=6 {
            for k in 1..=n {
                for seen in subsets(n).filter(|s| s.count_ones() as usize == sight(n, k)) {
                    for acked in subsets(n).filter(|s| s.count_ones() as usize == k) {
                        assert_ne!(seen & acked, 0, "n={n} k={k}");
                    }
                    let left = n - seen.count_ones() as usize;
                    assert!(left < k, "n={n} k={k}");
                }
                // One answer fewer misses some quorum, so the number is not larger than it must be.
                let fewer = sight(n, k) - 1;
                assert!(
                    subsets(n)
                        .filter(|s| s.count_ones() as usize == fewer)
                        .any(|seen| {
                            subsets(n)
                                .any(|acked| acked.count_ones() as usize == k && seen & acked == 0)
                        })
                );
            }
        }
    }

    #[test]
    fn quorum_position_is_held_by_k_copies_and_the_next_one_is_not() {
        for n in 1..=4_u32 {
            for code in 0..4_u64.pow(n) {
                let positions: Vec<Lsn> = (0..n).map(|i| Lsn(code / 4_u64.pow(i) % 4)).collect();
                for k in 1..=n as usize {
                    let p = quorum_position(&mut positions.clone(), k);
                    let holding = |lsn: Lsn| positions.iter().filter(|q| **q >= lsn).count();
                    assert!(holding(p) >= k);
                    assert!(holding(p.next()) < k);
                }
                assert_eq!(quorum_position(&mut positions.clone(), 0), Lsn::ZERO);
                assert_eq!(
                    quorum_position(&mut positions.clone(), n as usize + 1),
                    Lsn::ZERO
                );
            }
        }
    }

    #[test]
    fn two_majorities_meet() {
        for n in 1..=7 {
            assert!(2 * majority(n) > n);
        }
    }
}
