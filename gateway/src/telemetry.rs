//! What a gateway measures.
