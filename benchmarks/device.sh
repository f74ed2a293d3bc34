#!/usr/bin/env bash
# What only a GPU can show, in under eight minutes: the tests that need one, own work and training time.
# Run in the repository's root on a machine with torch, transformers, pytest and hypothesis:
#   bash benchmarks/device.sh [FOLDER]
# Copy FOLDER/device.json to results/performance and put the lines <!-- device.json --> and <!-- end --> under the last
# heading of docs/performance.md: benchmarks/report.py fills the place between them.
set -u
out=${1:-${OUT:-device}}
mkdir -p "$out"
export PYTHONPATH=$PWD/src
timeout 150 python -m pytest -q -p no:cacheprovider -p no:randomly tests/torch_contract tests/test_fused.py \
    tests/test_optimizer.py > "$out/tests.txt" 2>&1
echo "tests: $?" | tee "$out/status.txt"
for shape in base large; do
    timeout 45 python benchmarks/own_work.py --device cuda --shape $shape --rounds 15 --components 1 10 100 200 \
        --json "$out/own_work_$shape.json" > "$out/own_work_$shape.txt" 2>&1
    echo "own work, $shape: $?" | tee -a "$out/status.txt"
done
for run in base/float32 base/tf32 base/bfloat16 base/float16 large/bfloat16; do
    timeout 45 python benchmarks/overhead.py --device cuda --shape "${run%/*}" --precision "${run#*/}" --steps 30 \
        --tokens 128 --only "AdamW, foreach" AdamSLS "Growing AdamSLS" "Growing AdamSLS, on demand" "PLASLS by layer" \
        --json "$out/overhead_${run/\//_}.json" > "$out/overhead_${run/\//_}.txt" 2>&1
    echo "training, $run: $?" | tee -a "$out/status.txt"
done
python - "$out" <<'PYTHON'
import json, pathlib, platform, sys, torch
out = pathlib.Path(sys.argv[1])
files = sorted(out.glob("o*.json"))
made = {
    "machine": {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version()},
    "tests": out.joinpath("tests.txt").read_text().splitlines()[-1:],
    "measurements": [json.loads(file.read_text()) for file in files],
}
(out / "device.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
PYTHON
tail -n 3 "$out/tests.txt"
cat "$out"/o*.txt
