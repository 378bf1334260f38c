//! Resources that a controller sends: one byte chooses the kind, the rest is the resource.

use karst_proto::convert::{Interner, decode_address, decode_authorization, decode_node_workload};

use crate::Target;

/// A discovery resource.
pub const RESOURCE: Target = Target {
    name: "discovery",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let Some((kind, resource)) = bytes.split_first() else {
        return;
    };
    let mut interner = Interner::default();
    match kind % 3 {
        0 => drop(decode_address(resource, &mut interner)),
        1 => drop(decode_authorization(resource, &mut interner)),
        _ => drop(decode_node_workload(resource, &mut interner)),
    }
}

/// Hand-written protobuf: a workload inside an Address, an authorization, a node workload, each with a few fields.
fn seeds() -> Vec<Vec<u8>> {
    let workload = field(
        1,
        &[
            field(20, b"cluster//Pod/shop/web"),
            field(1, b"web"),
            field(2, b"shop"),
            field(3, &[10, 0, 0, 5]),
        ]
        .concat(),
    );
    let authorization = [field(1, b"deny-all"), field(2, b"shop"), vec![0x18, 1]].concat();
    let node = [field(1, b"0c5b8a52"), field(2, b"shop"), field(3, b"web-1")].concat();
    vec![
        [vec![0], workload].concat(),
        [vec![1], authorization].concat(),
        [vec![2], node].concat(),
    ]
}

/// A length-delimited field: number, length, bytes. Numbers below 16 take one byte of tag, larger ones two.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let tag = (u16::from(number) << 3) | 2;
    let [low, high] = [(tag & 0x7f) as u8, (tag >> 7) as u8];
    let tag = if high == 0 {
        vec![low]
    } else {
        vec![low | 0x80, high]
    };
    let length = u8::try_from(bytes.len()).expect("seeds are short");
    [tag, vec![length], bytes.to_vec()].concat()
}
