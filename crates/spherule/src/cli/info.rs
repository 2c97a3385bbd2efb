//! `spherule info`.

use super::client::{Daemon, refused};
use super::{Output, output};
use pod_api::v1::InfoRequest;

/// Prints what the daemon says of itself.
pub(crate) async fn run(mut daemon: Daemon, how: Output) -> anyhow::Result<()> {
    let info = daemon
        .pods
        .info(InfoRequest {})
        .await
        .map_err(refused)?
        .into_inner();
    if how == Output::Json {
        output::print_json(&pod_api::to_json("InfoResponse", &info))?;
        return Ok(());
    }
    let engine = output::word(info.engine().as_str_name(), "ENGINE_").to_lowercase();
    output::print(format!("Version:  {}", info.version))?;
    output::print(format!("Root:     {}", info.root))?;
    output::print(format!("Run:      {}", info.run))?;
    output::print(format!("CRI:      {}", info.cri_socket))?;
    output::print(format!("Kernel:   {}", info.kernel))?;
    output::print(format!("Pods:     {}", info.pods))?;
    output::print(format!("Images:   {}", info.images))?;
    let network = info.network.unwrap_or_default();
    let network = match (network.ready, network.name.as_str()) {
        (true, "") => network.message,
        (true, name) => name.to_owned(),
        (false, _) => format!("not ready: {}", network.message),
    };
    output::print(format!("Network:  {network}"))?;
    output::print(format!("Engine:   {engine} ({})", info.engine_reason))?;
    for e in &info.engines {
        let name = output::word(e.engine().as_str_name(), "ENGINE_").to_lowercase();
        let usable = if e.usable { "usable" } else { "not usable" };
        output::print(format!("  {name:<6}  {usable}: {}", e.detail))?;
    }
    Ok(())
}
