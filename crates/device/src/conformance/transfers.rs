//! Memory: what goes in comes out, fresh memory is zero, and a scope's result outlives it.

use super::random::Random;
use super::{Subject, bits, upload};
use crate::{DType, DeviceError};

pub(super) fn uploads_and_reads(subject: &Subject) {
    let mut random = Random::new(31);
    let mut ctx = subject.ctx(1 << 16);
    for shape in [[1, 1], [3, 5], [33, 70]] {
        let values = random.normals(shape[0] * shape[1]);
        let t = upload(&mut ctx, shape, &values);
        assert_eq!(bits(&ctx.read_f32(&t).unwrap()), bits(&values));
        let last = t.rows(shape[0] - 1, 1).unwrap();
        assert_eq!(bits(&ctx.read_f32(&last).unwrap()), bits(&values[(shape[0] - 1) * shape[1]..]));
        let flat = t.reshape([shape[0] * shape[1]]).unwrap();
        assert_eq!(bits(&ctx.read_f32(&flat).unwrap()), bits(&values));
        let fresh = ctx.persistent("zeros", shape, DType::F32).unwrap();
        assert!(ctx.read_f32(&fresh).unwrap().iter().all(|v| v.to_bits() == 0));
    }
    let short = ctx.upload("too short", [3], DType::F32, &[0; 8]);
    assert!(matches!(short, Err(DeviceError::Invalid { .. })), "{short:?}");
}

pub(super) fn scopes_keep_their_result(subject: &Subject) {
    let mut random = Random::new(32);
    for (rows, len) in [(1, 1), (3, 100), (33, 70)] {
        let mut ctx = subject.ctx(1 << 16);
        let (x, ones) = (random.normals(rows * len), vec![1.0; len]);
        let (source, unit) = (upload(&mut ctx, [rows, len], &x), upload(&mut ctx, [len], &ones));
        let x = ctx.rms_norm(&source, &unit, 1e-5).unwrap();
        let used_bytes = ctx.arena_used_bytes();
        let mut want = None;
        let mut inner = None;
        let kept = ctx
            .scope_into(x, |ctx, x| {
                let between = ctx.silu_mul(x, x)?;
                let result = ctx.silu_mul(&between, x)?;
                want = Some(ctx.read_f32(&result)?);
                inner = Some(result.clone());
                Ok(result)
            })
            .unwrap();
        assert_eq!(
            bits(&ctx.read_f32(&kept).unwrap()),
            bits(&want.unwrap()),
            "a scope's result of {rows} by {len}"
        );
        assert_eq!(ctx.arena_used_bytes(), used_bytes);
        let stale = ctx.silu_mul(&inner.unwrap(), &kept);
        assert!(matches!(stale, Err(DeviceError::Stale { .. })), "{stale:?}");
    }
}
