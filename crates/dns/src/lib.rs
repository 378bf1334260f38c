//! Names of endpoints outside of the mesh: a name in, its addresses out, and word when they change.
//!
//! ```text
//!   pin, resolve ──► Book (pure: which answer holds, when to ask again) ──due──► ask (UDP, TCP where it is cut)
//!        ▲                 │ changes                                                 │
//!        └── addresses ◄───┴────────────────────────answered─────────────────────────┘
//! ```
//!
//! The resolver is the one that the process is given. What it said last is kept while it says nothing, since an old
//! address is better than none.

mod ask;
mod book;
mod resolver;
mod system;

pub use self::{
    ask::AskError,
    book::{Answer, Book, Known, Limits},
    resolver::{Counts, Resolver},
    system::servers,
};
