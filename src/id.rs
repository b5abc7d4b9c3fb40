//! Names of things: fixed-size byte strings written as lower-case hex.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;

/// A text that is not the hex of an id.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not {bytes} bytes of lower-case hex")]
pub struct IdError {
    text: String,
    bytes: usize,
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// Size in bytes.
            pub const LEN: usize = $bytes;

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// Lower-case hex, all of it.
            pub fn hex(&self) -> String {
                HEXLOWER.encode(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.hex())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let wrong = || IdError { text: text.chars().take(80).collect(), bytes: $bytes };
                let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| wrong())?;
                Ok(Self(bytes.try_into().map_err(|_| wrong())?))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.hex())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id_type!(
    /// Keyed BLAKE3 of a chunk's plaintext.
    ChunkId, 32
);
id_type!(
    /// BLAKE3 of a stored object's bytes: the name of packs, index objects, manifests, marks, leases and removals.
    /// A manifest's is the backup ID.
    ObjectId, 32
);
id_type!(
    /// Random name of a repository, drawn by `init`, in the clear in its config and in the associated data of all it holds.
    RepoId, 16
);
id_type!(
    /// Random name of a key slot.
    SlotId, 16
);
id_type!(
    /// Random name of one installation of vault: a user on a host.
    HostId, 16
);

impl ObjectId {
    /// Returns the name of an object that holds `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first twelve hex digits, as people see it.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text_and_refuse_other_text() {
        let id = ObjectId::of(b"x");
        assert_eq!(id.hex().parse::<ObjectId>().unwrap(), id);
        for wrong in ["", "00", &id.hex().to_uppercase(), &format!("{}0", id.hex()), "é"] {
            assert!(wrong.parse::<ObjectId>().is_err(), "{wrong:?} is not an id");
        }
    }
}
