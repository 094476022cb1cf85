//! Memory: what goes in comes out, fresh memory is zero, and a scope's result outlives it.

use super::random::Random;
use super::{Subject, bits, upload, upload_u32};
use crate::{DType, DeviceError, HostTensor, Projection, WeightFormat};

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
        let mut weight = |rows: usize| {
            let bytes: Vec<u8> = random.normals(rows * len).iter().flat_map(|v| v.to_le_bytes()).collect();
            let host = HostTensor { format: WeightFormat::F32, rows, cols: len, bytes: &bytes };
            ctx.load_weight(&host).unwrap()
        };
        let (table, layer) = (weight(rows), weight(len));
        let ids = upload_u32(&mut ctx, &(0..rows as u32).collect::<Vec<_>>());
        let layer = [Projection { weight: &layer, bias: None, module: None, residual: None }];
        let x = ctx.embed(&ids, &table).unwrap();
        let used_bytes = ctx.arena_used_bytes();
        let mut want = None;
        let mut inner = None;
        let kept = ctx
            .scope_into(x, |ctx, x| {
                let [between] = ctx.linear(x, layer, None)?;
                let [result] = ctx.linear(&between, layer, None)?;
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
        let stale = ctx.linear(&inner.unwrap(), layer, None);
        assert!(matches!(stale, Err(DeviceError::Stale { .. })), "{stale:?}");
    }
}
