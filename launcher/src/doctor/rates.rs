//! What was measured, judged.

use zerofold_configs::{Backend, ElementType, Rates};

use super::AskedJob;
use super::finding::{Finding, Group, Verdict};
use crate::bench;
use crate::error::LaunchError;

/// GPUs that exchange large buffers slower than this go through the processors' memory.
const SLOW_NCCL_BYTES_PER_SECOND: f64 = 10e9;
/// From this size on a collective is limited by bandwidth.
const LARGE: u64 = 16 << 20;

/// All checks of this file. `measured` is `None` when it was known before that nothing would run.
pub(super) fn findings(measured: Option<&Result<Rates, LaunchError>>, job: &AskedJob) -> Vec<Finding> {
    let rates = match measured {
        Some(Ok(rates)) => rates,
        Some(Err(error)) => {
            return vec![Finding::of_error(Group::Rates, "rates", &error.to_string(), Verdict::Problem)];
        }
        None => {
            let words = format!("not measured: a job on {} would not run, see above", job.device);
            return vec![Finding::new(Group::Rates, "rates", words)];
        }
    };
    let mut findings = vec![Finding::new(Group::Rates, "measured with", bench::title(rates))];
    let rate = |dtype| rates.products.iter().find(|it| it.dtype == dtype).map(|it| it.flops);
    let slow_bfloat16 = rate(ElementType::Bfloat16).zip(rate(ElementType::Float32)).is_some_and(|(b, f)| b < f);
    let slow_nccl = rates.backend == Backend::Nccl
        && rates.collectives.iter().any(|it| it.bytes >= LARGE && it.bytes_per_second < SLOW_NCCL_BYTES_PER_SECOND);
    for (what, value) in bench::rows(rates) {
        let bfloat16 = what == format!("{} products", ElementType::Bfloat16);
        let large = rates.collectives.iter().any(|it| it.bytes >= LARGE && what.starts_with(&it.collective));
        findings.push(
            Finding::new(Group::Rates, what, value)
                .when(
                    bfloat16 && slow_bfloat16,
                    Verdict::Note,
                    "slower than float32 here: this processor has no instructions for it; --mixed_precision no is faster, \
                     where its memory allows",
                )
                .when(
                    slow_nccl && large,
                    Verdict::Warning,
                    "as slow as through host memory: see peer access above; `nvidia-smi topo -m` shows how GPUs are connected",
                ),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::tests::rates;
    use zerofold_configs::DeviceKind;

    fn verdicts(rates: Rates) -> Vec<Verdict> {
        let job = AskedJob { device: rates.device, ranks: 2, folder: ".".into() };
        findings(Some(&Ok(rates)), &job).iter().map(|it| it.verdict).collect()
    }

    #[test]
    fn slow_bfloat16_is_told() {
        assert_eq!(verdicts(rates(300.0, 2.0)), [Verdict::Ok; 5]);
        let expected = [Verdict::Ok, Verdict::Ok, Verdict::Note, Verdict::Ok, Verdict::Ok];
        assert_eq!(verdicts(rates(50.0, 2.0)), expected);
    }

    #[test]
    fn slow_nccl_is_told_and_slow_gloo_is_not() {
        let nccl = |gigabytes| Rates { device: DeviceKind::Cuda, backend: Backend::Nccl, ..rates(300.0, gigabytes) };
        assert_eq!(verdicts(nccl(2.0))[4], Verdict::Warning);
        assert_eq!(verdicts(nccl(200.0)), [Verdict::Ok; 5]);
    }

    #[test]
    fn what_could_not_be_measured_is_told_once() {
        let job = AskedJob { device: DeviceKind::Cuda, ranks: 2, folder: ".".into() };
        assert_eq!(findings(None, &job)[0].verdict, Verdict::Ok);
        let error = Err(LaunchError::Worker { message: "rank 0: no".to_owned(), hint: "try".to_owned() });
        let found = findings(Some(&error), &job);
        assert_eq!((found[0].verdict, found[0].hint.as_deref()), (Verdict::Problem, Some("try")));
    }
}
