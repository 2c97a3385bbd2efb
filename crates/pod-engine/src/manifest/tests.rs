use super::*;

const LIMITS: NodeLimits = NodeLimits {
    memory_mib: 16384,
    network: true,
};

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(text, &LIMITS).map(|(manifest, _)| manifest)
}

/// The faults of a manifest as lines.
fn faults(text: &str) -> Vec<String> {
    match parse(text) {
        Err(ManifestError::Fields(errors)) => errors.iter().map(ToString::to_string).collect(),
        other => panic!("expected faults, got {other:?}"),
    }
}

/// A pod with one container that has these lines (indented by four).
fn with_container(lines: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers:\n  - name: c\n    image: busybox\n{lines}"
    )
}

/// A pod with these lines in its spec (indented by two).
fn with_spec(lines: &str) -> String {
    format!("{}{lines}", with_container(""))
}

#[test]
fn smallest_pod_is_accepted_with_its_defaults() {
    let manifest = parse(&with_container("")).unwrap();
    assert_eq!(manifest.spec.restart_policy, RestartPolicy::Always);
    assert_eq!(manifest.grace_ms(), 30_000);
    assert_eq!(manifest.spec.containers[0].image, "busybox");
}

#[test]
fn every_field_that_is_not_honoured_is_named() {
    let text = with_container(
        "    lifecycle: {preStop: {exec: {command: [x]}}}\n    livenessProbe: {httpGet: {port: 80}}\n    ports:\n    - containerPort: 80\n      hostPort: 80\n  nodeName: x\n",
    );
    assert_eq!(
        faults(&text),
        [
            "spec.containers[0].lifecycle: not supported yet",
            "spec.containers[0].livenessProbe: not supported yet",
            "spec.nodeName: not supported yet",
        ]
    );
}

#[test]
fn fields_that_say_what_is_done_anyway_are_accepted() {
    let text = with_container(
        "    terminationMessagePath: /dev/termination-log\n    terminationMessagePolicy: File\n    tty: false\n    envFrom: []\n    resources: {}\n    ports:\n    - containerPort: 80\n      protocol: TCP\n  hostNetwork: false\n  dnsPolicy: ClusterFirst\n  enableServiceLinks: true\n  schedulerName: default-scheduler\n  priority: 0\n  tolerations: []\n  nodeSelector: {}\n  nodeName:\n  securityContext: {}\nstatus: {}\n",
    );
    parse(&text.replace("{name: p}", "{name: p, creationTimestamp: null}")).unwrap();
}

#[test]
fn host_namespaces_are_refused_with_the_reason() {
    let lines = faults(&with_spec(
        "  hostNetwork: true\n  hostPID: true\n  hostIPC: true\n",
    ));
    assert_eq!(lines.len(), 3);
    assert!(
        lines.iter().all(|line| line.contains("virtual machine")),
        "{lines:?}"
    );
}

#[test]
fn without_the_hosts_users_there_are_65536() {
    let users = |host: &str, id: u32| {
        with_spec(&format!(
            "  hostUsers: {host}\n  securityContext: {{supplementalGroups: [{id}]}}\n"
        ))
    };
    assert_eq!(
        faults(&users("false", 65536)),
        ["spec.securityContext.supplementalGroups[0]: must be between 0 and 65535"]
    );
    for (host, id, want) in [
        ("false", 65535, Some(false)),
        ("true", 65536, Some(true)),
        ("null", 65536, None),
    ] {
        assert_eq!(parse(&users(host, id)).unwrap().spec.host_users, want);
    }
}

#[test]
fn other_kinds_are_refused_first() {
    let lines = faults("apiVersion: apps/v1\nkind: Deployment\nspec: {replicas: 1}\n");
    assert_eq!(
        lines,
        [
            "apiVersion: \"apps/v1\": must be \"v1\"",
            "kind: \"Deployment\": must be \"Pod\", or beside it one of ConfigMap, Secret, PersistentVolume, PersistentVolumeClaim"
        ]
    );
}

#[test]
fn a_value_of_the_wrong_type_is_named_by_path() {
    let lines = faults(&with_container("    command: ls\n"));
    assert!(
        lines[0].starts_with("spec.containers[0].command: "),
        "{lines:?}"
    );
    let lines = faults(&with_container("    resources: {limits: {memory: 1Zi}}\n"));
    assert!(
        lines[0].starts_with("spec.containers[0].resources.limits.memory: "),
        "{lines:?}"
    );
    let lines = faults(&with_spec("  restartPolicy: Sometimes\n"));
    assert!(lines[0].starts_with("spec.restartPolicy: "), "{lines:?}");
}

#[test]
fn faults_of_many_fields_come_together() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: Not_OK, namespace: a.b}\nspec:\n  volumes:\n  - name: v\n    emptyDir: {medium: HugePages, sizeLimit: -1}\n  - name: v\n    emptyDir: {}\n  - name: h\n    hostPath: {path: /}\n  containers:\n  - name: c\n    image: ''\n    workingDir: tmp\n    volumeMounts:\n    - {name: w, mountPath: data}\n    - {name: v, mountPath: /a, subPath: ../x}\n    - {name: v, mountPath: /a/}\n  - name: c\n    image: i\n    env: [{name: 'A=B', value: x}]\n    securityContext: {runAsUser: -1, capabilities: {add: [FLY]}}\n    resources: {requests: {cpu: 2}, limits: {cpu: 1, nvidia.com/gpu: 1}}\n";
    let lines = faults(text);
    for path in [
        "metadata.name",
        "metadata.namespace",
        "spec.volumes[0].emptyDir.medium",
        "spec.volumes[0].emptyDir.sizeLimit",
        "spec.volumes[1].name",
        "spec.containers[0].image",
        "spec.containers[0].workingDir",
        "spec.containers[0].volumeMounts[0].name",
        "spec.containers[0].volumeMounts[0].mountPath",
        "spec.containers[0].volumeMounts[1].subPath",
        "spec.containers[0].volumeMounts[2].mountPath",
        "spec.containers[1].name",
        "spec.containers[1].env[0].name",
        "spec.containers[1].securityContext.runAsUser",
        "spec.containers[1].securityContext.capabilities.add[0]",
        "spec.containers[1].resources.requests.cpu",
        "spec.containers[1].resources.limits.nvidia.com/gpu: not supported yet",
    ] {
        assert!(
            lines.iter().any(|line| line.starts_with(path)),
            "{path} in {lines:#?}"
        );
    }
}

#[test]
fn faults_of_volumes_and_variables_are_named() {
    let text = with_container(
        "    volumeMounts:\n    - {name: v, mountPath: /a, subPathExpr: ../x}\n    - {name: v, mountPath: /b, subPath: x, subPathExpr: y}\n    - {name: v, mountPath: /c, mountPropagation: Bidirectional}\n    - {name: v, mountPath: /d, recursiveReadOnly: Enabled}\n    envFrom: [{}, {prefix: 'a=', secretRef: {name: S}}]\n    env:\n    - {name: A, value: x, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}\n    - {name: B, valueFrom: {configMapKeyRef: {name: m, key: ../k}}}\n    - {name: C, valueFrom: {resourceFieldRef: {resource: limits.gpu}}}\n    - {name: D, valueFrom: {fileKeyRef: {path: x}}}\n  securityContext: {fsGroup: -1}\n  volumes:\n  - {name: v, hostPath: {path: srv}}\n  - {name: w, nfs: {server: x}}\n  - {name: x, configMap: {name: m, items: [{key: k, path: ../k}, {key: k, path: /k}]}}\n  - name: y\n    projected:\n      sources:\n      - {serviceAccountToken: {path: token}}\n      - {downwardAPI: {items: [{path: a, resourceFieldRef: {containerName: no, resource: limits.cpu, divisor: 1Mi}}]}}\n  - {name: z, hostPath: {path: /run/x.sock, type: Socket}}\n  - {name: two, emptyDir: {}, secret: {secretName: s}}\n",
    );
    let lines = faults(&text);
    for start in [
        "spec.containers[0].volumeMounts[0].subPathExpr: must be a relative path",
        "spec.containers[0].volumeMounts[1].subPathExpr: must not stand beside subPath",
        "spec.containers[0].volumeMounts[2].mountPropagation: Bidirectional is not possible",
        "spec.containers[0].volumeMounts[3].recursiveReadOnly: needs readOnly",
        "spec.containers[0].envFrom[0]: must have one of",
        "spec.containers[0].envFrom[1].prefix",
        "spec.containers[0].envFrom[1].secretRef.name",
        "spec.containers[0].env[0].valueFrom: must not stand beside value",
        "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: status.hostIP: not supported yet",
        "spec.containers[0].env[1].valueFrom.configMapKeyRef.key",
        "spec.containers[0].env[2].valueFrom.resourceFieldRef.resource",
        "spec.containers[0].env[3].valueFrom.fileKeyRef: not supported yet",
        "spec.containers[0].env[3].valueFrom: must have one of",
        "spec.securityContext.fsGroup",
        "spec.volumes[0].hostPath.path: must be an absolute path",
        "spec.volumes[1].nfs: not supported yet",
        "spec.volumes[1]: must be of one kind",
        "spec.volumes[2].configMap.items[0].path: must be a relative path",
        "spec.volumes[2].configMap.items[1].path: must be a relative path",
        "spec.volumes[3].projected.sources[0].serviceAccountToken: cannot be had",
        "spec.volumes[3].projected.sources[1].downwardAPI.items[0].resourceFieldRef.containerName",
        "spec.volumes[3].projected.sources[1].downwardAPI.items[0].resourceFieldRef.divisor",
        "spec.volumes[4].hostPath.type: cannot be had",
        "spec.volumes[5]: must be of one kind",
    ] {
        assert!(
            lines.iter().any(|l| l.starts_with(start)),
            "{start} in {lines:#?}"
        );
    }
}

#[test]
fn what_no_vm_can_have_is_refused_with_a_remedy() {
    let lines = faults(&with_container(
        "    resources: {limits: {cpu: 100, memory: 1Ti}}\n",
    ));
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("64 vCPUs; ask for less"), "{lines:?}");
    assert!(lines[1].contains("16384 MiB"), "{lines:?}");
}

#[test]
fn json_is_accepted_too() {
    let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},
        "spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i","args":["a"]}]}}"#;
    let manifest = parse(text).unwrap();
    assert_eq!(manifest.spec.restart_policy, RestartPolicy::Never);
}

#[test]
fn devices_are_of_claims_and_have_a_path_of_their_own() {
    let text = |devices: &str| {
        let container = with_container(&format!(
            "    volumeMounts: [{{name: c, mountPath: /c}}]\n    volumeDevices: [{devices}]\n"
        ));
        format!(
            "{container}  volumes:\n  - {{name: b, persistentVolumeClaim: {{claimName: b}}}}\n  - {{name: c, persistentVolumeClaim: {{claimName: c}}}}\n  - {{name: e, emptyDir: {{}}}}\n"
        )
    };
    let good = parse(&text("{name: b, devicePath: /dev/xvda}")).unwrap();
    assert_eq!(
        good.spec.containers[0].volume_devices[0].device_path,
        "/dev/xvda"
    );
    for (device, field) in [
        ("{name: x, devicePath: /dev/a}", "name"),
        ("{name: e, devicePath: /dev/a}", "name"),
        ("{name: c, devicePath: /dev/a}", "name"),
        ("{name: b, devicePath: dev/a}", "devicePath"),
        ("{name: b, devicePath: /dev/../a}", "devicePath"),
        ("{name: b, devicePath: /c/}", "devicePath"),
        ("{name: b, devicePath: /}", "devicePath"),
    ] {
        let lines = faults(&text(device));
        let want = format!("spec.containers[0].volumeDevices[0].{field}");
        assert!(lines[0].starts_with(&want), "{device}: {lines:?}");
    }
}
