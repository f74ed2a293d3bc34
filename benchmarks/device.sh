#!/usr/bin/env bash
# What only a GPU can show, in under eight minutes: the tests that need one, and own work at BERT's shapes.
# Run in the repository's root on a machine with torch, pytest and hypothesis: bash benchmarks/device.sh [FOLDER]
set -u
out=${1:-${OUT:-device}}
mkdir -p "$out"
export PYTHONPATH=$PWD/src
python - > "$out/machine.json" <<'PYTHON'
import json, platform, torch
print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version()}))
PYTHON
timeout 200 python -m pytest -q -p no:cacheprovider -p no:randomly tests/torch_contract tests/test_fused.py \
    tests/test_optimizer.py > "$out/tests.txt" 2>&1
echo "tests: $?" | tee "$out/status.txt"
for shape in base large; do
    timeout 90 python benchmarks/own_work.py --device cuda --shape $shape --rounds 15 --components 1 10 100 200 \
        --json "$out/own_work_$shape.json" > "$out/own_work_$shape.md" 2> "$out/own_work_$shape.err"
    echo "own work, $shape: $?" | tee -a "$out/status.txt"
done
tail -n 3 "$out/tests.txt"
cat "$out"/own_work_*.md
