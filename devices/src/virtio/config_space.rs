//! Reading a configuration space at whatever offset and width a driver likes.

/// Fills `data` from `space` at `offset`, with zeroes beyond its end.
pub(super) fn read(space: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|at| space.get(at..)).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(rest.iter().chain(std::iter::repeat(&0))) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn beyond_the_end_is_zero() {
        let at = |offset| {
            let mut data = [0xee; 4];
            super::read(&[1, 2, 3, 4, 5], offset, &mut data);
            data
        };
        assert_eq!(at(0), [1, 2, 3, 4]);
        assert_eq!(at(3), [4, 5, 0, 0]);
        assert_eq!((at(5), at(u64::MAX)), ([0; 4], [0; 4]));
    }
}
