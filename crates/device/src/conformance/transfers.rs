//! Memory: what goes in comes out, fresh memory is zero, and a scope's result survives its move.

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

pub(super) fn scopes_move_their_result(subject: &Subject) {
    let mut random = Random::new(32);
    // The result may have to move by less than its own length, or not at all.
    for (before, len) in [(16, 3000), (3000, 16), (100, 100), (1, 1)] {
        let mut ctx = subject.ctx(1 << 16);
        let ones = vec![1.0; len];
        let (x, unit) = (random.normals(len), upload(&mut ctx, [len], &ones));
        let first = upload(&mut ctx, [1, before], &vec![2.0; before]);
        let second = upload(&mut ctx, [1, len], &x);
        let mut want = None;
        let mut stale = None;
        let moved = ctx
            .scope(|ctx| {
                let garbage = ctx.silu_mul(&first, &first)?;
                let result = ctx.rms_norm(&second, &unit, 1e-5)?;
                want = Some(ctx.read_f32(&result)?);
                stale = Some(garbage);
                Ok(result)
            })
            .unwrap();
        assert_eq!(bits(&ctx.read_f32(&moved).unwrap()), bits(&want.unwrap()), "{len} moved by {before}");
        let stale = ctx.silu_mul(&stale.unwrap(), &first);
        assert!(matches!(stale, Err(DeviceError::Stale { .. })), "{stale:?}");
    }
}
