//! Random numbers that are the same everywhere and for ever: SplitMix64 (Steele, Lea, Flood, "Fast
//! Splittable Pseudorandom Number Generators", 2014).

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 (inclusive) to 1 (exclusive).
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// One of so many (more than 0).
    pub(crate) fn below(&mut self, count: usize) -> usize {
        let count = u64::try_from(count.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % count).unwrap_or(0)
    }

    /// The place in a list of shares that add up to 1.
    pub(crate) fn choose(&mut self, shares: &[f64]) -> usize {
        let mut left = self.unit();
        for (place, share) in shares.iter().enumerate() {
            left -= share;
            if left < 0.0 {
                return place;
            }
        }
        shares.len().saturating_sub(1)
    }

    /// Log-normal, of this mean and coefficient of variation (standard deviation over mean).
    pub(crate) fn log_normal(&mut self, mean: f64, variation: f64) -> f64 {
        let variance = (1.0 + variation * variation).ln();
        mean * (self.normal() * variance.sqrt() - variance / 2.0).exp()
    }

    /// Box and Muller, 1958.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let mut random = Random::new(1_234_567);
        // From the reference implementation.
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn a_log_normal_has_its_mean_and_variation() {
        for variation in [0.5, 2.0] {
            let mut random = Random::new(7);
            let draws: Vec<f64> = (0..200_000)
                .map(|_| random.log_normal(2.0, variation))
                .collect();
            let mean = draws.iter().sum::<f64>() / 200_000.0;
            let square = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 200_000.0;
            assert!((mean - 2.0).abs() < 0.05, "{mean}");
            let found = square.sqrt() / mean;
            assert!((found / variation - 1.0).abs() < 0.15, "{found}");
        }
    }

    #[test]
    fn shares_are_drawn_as_often_as_they_say() {
        let mut random = Random::new(3);
        let mut counts = [0_u32; 3];
        for _ in 0..10_000 {
            counts[random.choose(&[0.7, 0.2, 0.1])] += 1;
        }
        assert!(counts[0].abs_diff(7_000) < 200 && counts[2].abs_diff(1_000) < 120);
        assert!((0..100).all(|_| random.below(3) < 3));
    }
}
