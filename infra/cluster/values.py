"""Values of the chart for a small machine without GPUs and registry, as JSON: Python and bases from volumes (volumes.sh), vLLM's CPU build.

usage: values.py [--try]      --try: also what a first look needs: an engine, and a NATS that keeps its data in its pod
"""

import json
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent.parent
listed = subprocess.run([root / "infra/cluster/volumes.sh", "--list"], check=True, capture_output=True, text=True).stdout
python = [line.split(" ", 1) for line in listed.splitlines() if line.startswith("python")]
volumes = [{"name": name, "persistentVolumeClaim": {"claimName": name, "readOnly": True}} for name, _ in python]
mounts = [{"name": name, "mountPath": path, "readOnly": True} for name, path in python]
program = f"{root}/.venv/bin/python"


def small(memory: str) -> dict:
    return {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": memory}}}


values = {
    "image": {"tag": "dev", "nats": "docker.io/loraline/nats:dev"},
    "bases": {"volume": {"persistentVolumeClaim": {"claimName": "bases", "readOnly": True}}},
    "nats": {"persistence": {"size": "4Gi"}, **small("1Gi")},
    "streams": small("512Mi"),
    "gateway": small("1Gi"),
    "ingest": small("2Gi"),
    "tokenize": small("2Gi"),
    "serve": small("1Gi"),
    "operator": small("512Mi"),
    "agent": small("512Mi"),
    "test": {"steps": 4, **small("512Mi")},
    "train": {
        **small("1Gi"),
        "createNamespace": False,  # the claims must be there before the attempts
        "pods": {
            "courier": {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "1Gi", "ephemeral-storage": "1Gi"}}},
            "device": "cpu",
            "gpus": 1,  # the node pretends to have two
            "cpu": "100m",
            "memory": "6Gi",  # two ranks in one pod take two each in float32
            "ephemeralStorage": "1Gi",
            "env": [
                {"name": "LORALINE_PYTHON", "value": program},
                {"name": "OMP_NUM_THREADS", "value": "2"},
                {"name": "HF_HUB_OFFLINE", "value": "1"},
            ],
            "volumes": volumes,
            "volumeMounts": mounts,
        },
    },
    "engineDefaults": {
        "image": "docker.io/loraline/engine-cpu:dev",
        "command": [program, "packages/local/engine.py"],
        "gpus": 0,
        "dtype": "bfloat16",
        "maxModelLen": 2048,
        "extraArgs": [
            "--max-num-seqs=16",
            "--enforce-eager",
            "--distributed-executor-backend=uni",
            "--disable-log-stats",
            "--disable-uvicorn-access-log",
        ],
        "env": [
            {"name": "OMP_NUM_THREADS", "value": "1"},
            {"name": "VLLM_CPU_OMP_THREADS_BIND", "value": "nobind"},
            {"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"},
            {"name": "VLLM_ENABLE_V1_MULTIPROCESSING", "value": "0"},
            {"name": "TORCHDYNAMO_DISABLE", "value": "1"},
            {"name": "PYTHONUNBUFFERED", "value": "1"},
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "2Gi"}, "limits": {"memory": "5Gi"}},
        "volumes": volumes,
        "volumeMounts": mounts,
    },
}
if sys.argv[1:] == ["--try"]:
    values["nats"]["persistence"] = {"enabled": False}
    values["engines"] = [{"name": "smollm2", "base": "smollm2-135m-instruct"}]
elif sys.argv[1:]:
    sys.exit(__doc__)
print(json.dumps(values, indent=1))
