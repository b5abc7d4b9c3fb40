//! zstd against a prefix, with one context for one blob after another.

use zstd::zstd_safe::{CCtx, ResetDirective};

/// Compresses plaintexts against prefixes. Each may be gone as soon as its plaintext is compressed, which `CCtx` itself does not
/// allow: a new context for every blob would have its tables' pages made and cleared by the system each time.
pub(super) struct PrefixDeflater(CCtx<'static>);

impl PrefixDeflater {
    pub fn new() -> Self {
        Self(CCtx::create())
    }

    /// Compresses `plaintext` into `packed`, which has room for it, with the parameters that `set_up` sets. Errors are zstd's codes.
    pub fn compress(
        &mut self,
        prefix: &[u8],
        plaintext: &[u8],
        packed: &mut Vec<u8>,
        set_up: impl FnOnce(&mut CCtx<'_>) -> Result<(), usize>,
    ) -> Result<(), usize> {
        fn with_lifetime_of<'c, 'p>(context: &'c mut CCtx<'static>, _: &'p [u8]) -> &'c mut CCtx<'p> {
            // SAFETY: both are the same pointer; the lifetime only says for how long what the context refers to has to live. It
            // refers to the prefix until it is reset: at the end of `compress`, and, should that be left by a panic, at the
            // beginning of the next one, before zstd looks at it. Dropping a context does not look at its prefix.
            unsafe { &mut *std::ptr::from_mut(context).cast() }
        }
        let context = with_lifetime_of(&mut self.0, prefix);
        context.reset(ResetDirective::SessionAndParameters)?;
        let done = set_up(context)
            .and_then(|()| context.ref_prefix(prefix))
            .and_then(|_| context.compress2(packed, plaintext));
        context.reset(ResetDirective::SessionAndParameters)?;
        done.map(|_| ())
    }
}
