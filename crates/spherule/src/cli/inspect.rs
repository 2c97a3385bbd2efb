//! `spherule inspect`.

use super::client::{Daemon, refused};
use super::output;
use pod_api::v1::GetPodRequest;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id, unique prefix of it, name, or namespace/name
    #[arg(required = true)]
    pods: Vec<String>,
}

/// Prints a JSON array with everything known of the pods.
pub(crate) async fn run(mut daemon: Daemon, args: Args) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for pod in args.pods {
        let answer = daemon
            .pods
            .get_pod(GetPodRequest { pod })
            .await
            .map_err(refused)?;
        let pod = answer.into_inner().pod.unwrap_or_default();
        let mut json = pod_api::to_json("Pod", &pod);
        // The manifest travels as text; here it is part of the answer.
        if let Ok(manifest) = serde_json::from_str(&pod.manifest) {
            json["manifest"] = manifest;
        }
        found.push(json);
    }
    output::print_json(&serde_json::Value::Array(found))?;
    Ok(())
}
