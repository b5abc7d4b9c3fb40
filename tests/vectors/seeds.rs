//! The inputs that the fuzz targets start from: what is read without a fault, if it is short.

use crate::build::{Block, Frame};
use crate::bytes::{Expect, Group, expand, noise};

const SEED_BYTES_MAX: usize = 1024;

/// Returns the seeds as (path under `fuzz/seeds`, bytes).
pub fn seeds(groups: &[Group]) -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for group in groups {
        let target = match group.object {
            "box" => "sealed",
            "escape" => "path",
            same @ ("config" | "slot" | "directory" | "index" | "manifest" | "item" | "record") => same,
            "pack" => "trailer",
            _ => continue,
        };
        let read = group.cases.iter().filter(|case| matches!(case.expect, Expect::Ok(_)));
        let inputs = read.map(|case| match target {
            "path" => case.given["name"].as_str().expect("text").as_bytes().to_vec(),
            "item" => expand(&case.given["bytes"]).strip_suffix(b"\n").expect("a line").to_vec(),
            "trailer" => {
                let pack = expand(&case.given["bytes"]);
                [&(pack.len() as u64).to_le_bytes()[..], &pack[pack.len() - 12..]].concat()
            }
            _ => expand(&case.given["bytes"]),
        });
        let short = inputs.filter(|input| input.len() <= SEED_BYTES_MAX && !input.is_empty());
        out.extend(short.enumerate().map(|(at, input)| (format!("{target}/{at:02}"), input)));
    }
    for (at, (length, frame)) in frames().into_iter().enumerate() {
        out.push((format!("frame/{at:02}"), [&(length as u32).to_le_bytes()[..], &frame].concat()));
        out.push((format!("blob/{at:02}"), [&[0], &(length as u16 - 1).to_le_bytes()[..], &frame].concat()));
    }
    out
}

fn frames() -> Vec<(usize, Vec<u8>)> {
    let sentence = "the quick brown fox jumps over the lazy dog. ".repeat(20);
    let compressed = zstd::bulk::compress(sentence.as_bytes(), 19).expect("zstd compresses any bytes");
    let data = noise("frame", 40);
    vec![
        (40, Frame::raw(&data).make()),
        (41, Frame::of(41, vec![Block::Raw(data), Block::Run(b'x', 1)]).make()),
        (5000, Frame::of(5000, vec![Block::Run(7, 5000)]).make()),
        (sentence.len(), compressed),
    ]
}
