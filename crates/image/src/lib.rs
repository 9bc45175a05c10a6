//! wardian-image
