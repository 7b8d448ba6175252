//! placeholder
use std::path::Path;
use zerofold_configs::GenerateRequest;
/// placeholder
pub fn run(_request: &GenerateRequest) -> anyhow::Result<()> { anyhow::bail!("not built yet") }
/// placeholder
pub fn logits(_model: &Path, _ids: &Path, _out: &Path) -> anyhow::Result<()> { anyhow::bail!("not built yet") }
