# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""launch/gke.yaml: hosts, chips and restarts fit together."""

import math
import pathlib
import signal

import yaml

ROOT = pathlib.Path(__file__).parents[2]


def test_the_manifest_takes_a_whole_slice_and_restarts_stopped_hosts():
    manifest = yaml.safe_load((ROOT / "launch" / "gke.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]

    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    chips = math.prod(int(n) for n in selector["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["completions"] == job["parallelism"] > 1
    assert job["completions"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert replicated["replicas"] == 1 and job["completionMode"] == "Indexed"

    # All hosts start anew together: without limit where they were stopped, else a few times.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    stopped, disrupted = job["podFailurePolicy"]["rules"]
    assert stopped["action"] == disrupted["action"] == "FailJob"
    assert stopped["onExitCodes"]["values"] == [128 + signal.SIGTERM]  # of apps.train
    assert stopped["onExitCodes"]["containerName"] == container["name"]
    assert disrupted["onPodConditions"][0]["type"] == "DisruptionTarget"
    failures = manifest["spec"]["failurePolicy"]
    (rule,) = failures["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"] and failures["maxRestarts"] > 0

    (port,), (variable,) = container["ports"], container["env"]
    assert variable == {"name": "JAX_COORDINATOR_PORT", "value": str(port["containerPort"])}

    # Paths of the command are those of the image, where runs/ is in the mounted bucket.
    docker = (ROOT / "launch" / "Dockerfile").read_text()
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"] and f"ln -s {mount['mountPath']}/runs " in docker
    program, name, distributed, config, workdir = container["command"]
    assert (program, name, distributed) == ("cropvlm", "train", "--distributed")
    config, workdir = (flag.split("=")[1] for flag in (config, workdir))
    assert (ROOT / config).is_file() and workdir.startswith("runs/")
