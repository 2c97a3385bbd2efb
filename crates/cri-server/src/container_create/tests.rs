use super::*;
use cri_api::v1::{CdiDevice, Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext};
use cri_api::v1::{PodSandboxConfig, PodSandboxMetadata, WindowsContainerConfig};
use image_store::ImageConfig;
use sandbox::{Engine, Sandbox, SandboxState};

fn image() -> Image {
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64)).parse().unwrap();
    Image {
        id: digest("a"),
        chain_id: digest("b"),
        tags: vec!["host/app:1".into()],
        digests: vec!["host/app@sha256:cc".into()],
        size: 1,
        created_at_ns: 0,
        pinned: false,
        unwanted: false,
        config: ImageConfig {
            cmd: vec!["run".into()],
            user: "app".into(),
            stop_signal: Some("SIGQUIT".into()),
            ..ImageConfig::default()
        },
    }
}

fn sandbox(privileged: bool) -> CriSandbox {
    let config = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web".into(),
            uid: "u".into(),
            namespace: "n".into(),
            attempt: 0,
        }),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                privileged,
                ..LinuxSandboxSecurityContext::default()
            }),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    };
    let settings = crate::Config::new("0", 4096);
    let spec = crate::sandbox_run::convert("a1", &config, "", &settings, None).unwrap();
    let sandbox = Sandbox {
        spec,
        engine: Engine::Qemu,
        state: SandboxState::Ready,
        reason: None,
        created_at_ns: 1,
        ready_at_ns: 2,
        finished_at_ns: 0,
        stages: Vec::new(),
        kernel_release: String::new(),
        engine_pid: 0,
        in_cgroup_parent: false,
        network: None,
        pod_ips: Vec::new(),
        block_volumes: Vec::new(),
        empty_dirs: BTreeMap::new(),
        steps: Vec::new(),
    };
    CriSandbox::new(sandbox).unwrap().unwrap()
}

fn config() -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "app".into(),
            attempt: 1,
        }),
        image: Some(ImageSpec {
            image: "app:1".into(),
            ..ImageSpec::default()
        }),
        log_path: "app/1.log".into(),
        ..ContainerConfig::default()
    }
}

fn no_target(id: &str) -> Result<String, CriError> {
    panic!("asked for {id}")
}

fn converted(config: &ContainerConfig, privileged: bool) -> Result<ContainerSpec, CriError> {
    let sandbox = sandbox(privileged);
    convert(config, &sandbox, &image(), "/logs/pod", &[], no_target).map(|(spec, _)| spec)
}

fn security(context: LinuxContainerSecurityContext) -> ContainerConfig {
    ContainerConfig {
        linux: Some(LinuxContainerConfig {
            security_context: Some(context),
            ..LinuxContainerConfig::default()
        }),
        ..config()
    }
}

#[test]
fn least_request_takes_the_rest_from_the_image() {
    let spec = converted(&config(), false).unwrap();
    assert_eq!((spec.name.as_str(), spec.attempt), ("app", 1));
    assert_eq!(spec.process.args, ["run"]);
    assert_eq!(spec.process.user, "app");
    assert_eq!(spec.image, format!("sha256:{}", "a".repeat(64)));
    assert_eq!(spec.log_path, Path::new("/logs/pod/app/1.log"));
    assert_eq!(spec.stop_signal, 3);
    assert_eq!(spec.paths, None);
    assert_eq!(spec.process.capabilities.len(), 14);
}

#[test]
fn security_context_goes_through_to_the_process() {
    let with = security(LinuxContainerSecurityContext {
        run_as_user: Some(Int64Value { value: 7 }),
        no_new_privs: true,
        readonly_rootfs: true,
        supplemental_groups: vec![3],
        ..LinuxContainerSecurityContext::default()
    });
    let spec = converted(&with, false).unwrap();
    assert_eq!(spec.process.uid, Some(7));
    assert_eq!(spec.process.additional_gids, [3]);
    assert!(spec.process.no_new_privileges && spec.readonly_rootfs);
    // As given: nothing is hidden.
    assert_eq!(spec.paths, Some(sandbox::PathRules::default()));
}

#[test]
fn privileged_needs_a_sandbox_that_allows_it() {
    let with = security(LinuxContainerSecurityContext {
        privileged: true,
        ..LinuxContainerSecurityContext::default()
    });
    assert!(converted(&with, true).unwrap().privileged);
    let error = converted(&with, false).unwrap_err().to_string();
    assert!(error.contains("privileged"), "{error}");
}

#[test]
fn malformed_requests_are_refused_by_field() {
    let refused = |change: fn(&mut ContainerConfig), field: &str| {
        let mut with = config();
        change(&mut with);
        let error = converted(&with, false).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{field}:")), "{error}");
    };
    refused(|c| c.metadata = None, "config.metadata");
    refused(
        |c| c.metadata.as_mut().unwrap().name.clear(),
        "config.metadata.name",
    );
    refused(|c| c.log_path = "../1.log".into(), "config.log_path");
    refused(|c| c.log_path = "/1.log".into(), "config.log_path");
    refused(|c| c.stop_signal = 99, "config.stop_signal");
    refused(
        |c| c.windows = Some(WindowsContainerConfig::default()),
        "config.windows",
    );
    refused(
        |c| {
            c.cdi_devices = vec![CdiDevice {
                name: "v/c=d".into(),
            }];
        },
        "config.CDI_devices",
    );
}

#[test]
fn container_without_a_log_path_has_no_log() {
    let with = ContainerConfig {
        log_path: String::new(),
        ..config()
    };
    assert_eq!(
        converted(&with, false).unwrap().log_path,
        Path::new("/dev/null")
    );
}

#[test]
fn request_chooses_the_stop_signal_before_the_image() {
    let with = ContainerConfig {
        stop_signal: Signal::Sigusr1.into(),
        ..config()
    };
    assert_eq!(converted(&with, false).unwrap().stop_signal, 10);
}

#[test]
fn image_is_called_as_people_call_it() {
    let named = |asked: &str, user: &str| {
        let spec = ImageSpec {
            image: asked.into(),
            user_specified_image: user.into(),
            ..ImageSpec::default()
        };
        image_names(Some(&spec), &image()).0
    };
    let id = format!("sha256:{}", "a".repeat(64));
    assert_eq!(named("app:1", ""), "app:1");
    assert_eq!(named(&id, ""), "host/app:1");
    assert_eq!(named("aaaaaa", ""), "host/app:1");
    assert_eq!(named(&id, "app"), "app");
    let local = Image {
        tags: Vec::new(),
        digests: Vec::new(),
        ..image()
    };
    let (name, reference) = image_names(None, &local);
    assert_eq!(
        (name.as_str(), reference.as_str()),
        (id.as_str(), id.as_str())
    );
}
