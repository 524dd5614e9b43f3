//! Tells cargo that a new migration file must rebuild the crate, which embeds the folder.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
