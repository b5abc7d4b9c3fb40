//! In which order to open blobs that rest on others, so that each is opened once.

use super::Holdings;
use super::bits::Bits;
use crate::limits::DELTA_DEPTH_MAX;
use crate::repo::RepoError;

/// Which blobs rest on which.
pub struct Chains {
    /// For each blob the deepest one that holds a base of it; itself if it has none, or if nobody asked.
    rests_on: Vec<u32>,
    /// The blobs that stand there for another.
    rested_on: Bits,
}

impl Chains {
    /// The chains of blobs that are `wanted`, which those that they rest on must be too.
    pub fn of(holdings: &Holdings, wanted: impl Fn(u32) -> bool) -> Result<Self, RepoError> {
        let count = u32::try_from(holdings.blobs.len()).expect("blobs are numbered by u32");
        let mut rests_on: Vec<u32> = (0..count).collect();
        let depth = |blob: u32| holdings.blobs[blob as usize].depth;
        holdings.look_up_bases(wanted, |base, _, copies| {
            let known = &mut rests_on[base.blob as usize];
            for copy in copies.iter().filter(|copy| depth(copy.blob) < depth(base.blob)) {
                if *known == base.blob || depth(copy.blob) > depth(*known) {
                    *known = copy.blob;
                }
            }
            Ok(())
        })?;
        let mut rested_on = Bits::new(rests_on.len());
        for (&on, _) in rests_on.iter().zip(0..).filter(|&(&on, blob)| on != blob) {
            rested_on.set(on as usize);
        }
        Ok(Self { rests_on, rested_on })
    }

    /// Whether a blob is the deepest one that another rests on.
    pub fn is_rested_on(&self, blob: u32) -> bool {
        self.rested_on.get(blob as usize)
    }

    /// The blobs that lead to a blob, from the one that stands alone on. In the order of these, a blob comes right after
    /// what it rests on, and the blobs of a place after each other.
    pub fn path(&self, blob: u32) -> Vec<u32> {
        let mut path = vec![blob];
        let mut at = blob;
        while self.rests_on[at as usize] != at && path.len() <= usize::from(DELTA_DEPTH_MAX) {
            at = self.rests_on[at as usize];
            path.push(at);
        }
        path.reverse();
        path
    }
}
