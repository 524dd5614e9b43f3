//! What the FlatBuffers compiler makes of `schema/`. Written by `.ci/codegen`, never by hand;
//! nothing of it leaves this crate.

#[rustfmt::skip]
#[allow(
    unsafe_code,
    unreachable_pub,
    unused_qualifications,
    elided_lifetimes_in_paths,
    mismatched_lifetime_syntaxes,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::too_many_lines,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "generated code; its accessors are sound on verified buffers, which `frame` sees to"
)]
mod link_generated;

pub(crate) use link_generated::drover::{agent, link};
