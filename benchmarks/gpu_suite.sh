#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one go: does it run, is it right, how fast is it.
#
#   benchmarks/gpu_suite.sh [--dry-run] [--out DIR] [--data DIR] [--encoder-weights FILE] [STEP...]
#
# Steps (default: all, in this order; one that fails does not stop the others):
#   doctor   what is here                                              doctor.json
#   engines  plans of TensorRT and TensorRT for RTX: do they build, load and run here?
#   tests    python -m pytest -m gpu; DALI's decoding on the GPU against its own on the CPU
#   parity   masks of the plan against ONNX Runtime's, decoded on the CPU and on the GPU   parity-{cpu,gpu}-decode.json
#   bench    isicrt bench: the pipeline of `segment`, plan beside ONNX  bench.json
#   speed    each stage alone and end to end; torch and ONNX Runtime    speed.json
#   train    a short training run of each architecture                  training.tar.gz
#
# --out    where the results go; $OUT if that is set, else gpu-results. At most eight files, logs in suite.log.
# --data   an ISIC 2016 folder (test/images, test/masks, train/...); $ISICRT_DATA if that is set. Without it rendered
#          images are used, and nothing is scored or trained.
# --encoder-weights  MobileNetV2's ImageNet weights, for `train`; without it the runs start from random weights.
#
# On a machine that reaches no package index, carry what is missing there: wheels for that machine's Python, unpacked into
# one folder on PYTHONPATH. Set SITE_PARTS to files that make up a tar.xz of such a folder, in order, and they are unpacked
# into $SITE (default: a folder isicrt-site in the system's temporary one) first; without SITE_PARTS $SITE is used as it is.
# Called where there is no GPU, every step says so and the exit code is 1.
#
# Recipe, with the two helpers of the project's workplace (../shared/tools, not part of this repository), for a lent machine
# with CPython 3.12 that takes at most 64 MiB a call, of which this repository is 25, and keeps ignored files between calls:
#
#   ../shared/tools/build_pycuda_wheel.sh build/wheels          # needs python3.12, g++ and CUDA headers, no driver
#   PART=32 ../shared/tools/pack_wheels.sh build/parts build/wheels/pycuda-*.whl tensorrt-rtx-cu13-libs==1.7.1.116 \
#     tensorrt-rtx-cu13-bindings==1.7.1.116 nvidia-nvimgcodec-cu13==0.9.0.20 nvidia-nvjpeg cykooz-resizer simplejpeg isal
#
# nvidia-nvjpeg is not optional: without it nvImageCodec decodes no JPEG on the GPU. nvcc is not needed, the kernels come as
# PTX, but the driver must serve CUDA 13. For `tests` add nvidia-dali-cuda130 with what it imports: astunparse, gast, optree.
# Whatever else is not there (numpy, click, onnx, onnxruntime, opencv-python-headless, pillow, rich; for `tests` pytest, six,
# packaging, typing_extensions), the first call shows. All packages of NVIDIA go into the same folder: DALI looks for
# nvImageCodec beside itself. The packer leaves dependencies out: name each. Then, a part a call
# (build/ is ignored by git), the last one with the suite:
#
#   python3 -V; python3 -m pip list; nvidia-smi                 # carry build/parts/site.tar.xz.00
#   true                                                        # carry build/parts/site.tar.xz.01, and so on
#   SITE_PARTS='build/parts/site.tar.xz.*' benchmarks/gpu_suite.sh doctor engines parity      # correctness before speed
#   benchmarks/gpu_suite.sh speed tests                         # the same warm machine: $SITE and $WORK are still there
#
# With 15 minutes of machine in all, leave `bench` and `train` for another time, and give each call a limit of its own.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,/^set -uo/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; }

all=(doctor engines tests parity bench speed train)
out=${OUT:-gpu-results} data=${ISICRT_DATA:-} weights=none dry= steps=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --out | --data | --encoder-weights)
      [ $# -gt 1 ] || { echo "$1 needs a value" >&2; exit 2; }
      case $1 in --out) out=$2 ;; --data) data=$2 ;; *) weights=$2 ;; esac
      shift ;;
    -h | --help) usage; exit 0 ;;
    doctor | engines | tests | parity | bench | speed | train) steps+=("$1") ;;
    *) echo "unknown: $1 (steps: ${all[*]}; see --help)" >&2; exit 2 ;;
  esac
  shift
done
[ ${#steps[@]} -gt 0 ] || steps=("${all[@]}")
[ -z "$data" ] || [ -d "$data" ] || { echo "--data $data: no such folder" >&2; exit 2; }

python=${PYTHON:-python3}
work=${WORK:-${TMPDIR:-/tmp}/isicrt-gpu-suite}
site=${SITE:-${TMPDIR:-/tmp}/isicrt-site}
export PYTHONUNBUFFERED=1 PYTHONPATH="$here:$site${PYTHONPATH:+:$PYTHONPATH}"
isicrt=("$python" -m isicrt.cli.main)
failed=0

say() { echo "$*"; [ -n "$dry" ] || echo "$*" >>"$out/summary.txt"; }

# run NAME SECONDS COMMAND...: one line in the summary, the output in the log.
run() {
  local name=$1 seconds=$2 rc started
  shift 2
  if [ -n "$dry" ]; then
    printf '%s (at most %s s):' "$name" "$seconds"
    printf ' %q' "$@"
    echo
    return 0
  fi
  echo "=== $name: $*" >>"$out/suite.log"
  started=$SECONDS
  timeout --kill-after=20 "$seconds" "$@" >>"$out/suite.log" 2>&1
  rc=$?
  [ $rc -eq 0 ] || failed=1
  say "$(printf '%-34s rc %-3s %5s s' "$name" "$rc" "$((SECONDS - started))")"
  return $rc
}

has() { "$python" -c "import $1" >/dev/null 2>&1; }

# The first plan that was built and run here, TensorRT's before that of TensorRT for RTX.
plan() {
  local found
  for found in "$work"/engine-tensorrt "$work"/engine-tensorrt-rtx "$work"/engine-tensorrt-rtx-{current,8.0}; do
    [ -n "$dry" ] || [ -f "$found/ran" ] || continue
    echo "$found/model.plan"
    return 0
  done
  return 1
}

images() { [ -n "$data" ] && echo "$data/test/images" || echo "$here/examples/images"; }

# engine NAME MODULE OPTION...: build, then segment the examples with the plan.
engine() {
  local name=$1 module=$2
  shift 2
  if [ -z "$dry" ] && ! has "$module"; then
    say "build $name: skipped, $module cannot be imported"
    return 1
  fi
  rm -f "$work/engine-$name/ran"
  run "build $name" 300 "${isicrt[@]}" build-engine unet-light --fp16 --batch-size 1,32,256 \
    --images "$(images)" --parity-images 16 --out "$work/engine-$name" "$@" &&
    run "run $name" 120 "${isicrt[@]}" segment "$here/examples/images" --out "$work/masks-$name" --overwrite \
      --model "$work/engine-$name/model.plan" --decode cpu &&
    { [ -n "$dry" ] || touch "$work/engine-$name/ran"; } &&
    # Whether the GPU decodes too is another question: a plan that ran is good for the other steps.
    { run "run $name, decoded there" 120 "${isicrt[@]}" segment "$here/examples/images" --out "$work/gpu-masks-$name" \
      --overwrite --model "$work/engine-$name/model.plan" --decode gpu || true; }
}

step_doctor() {
  run "doctor" 300 bash -c '"$@" doctor --json >"$0/doctor.json"' "$out" "${isicrt[@]}"
  [ -z "$dry" ] || return 0
  nvidia-smi >>"$out/suite.log" 2>&1 || say "nvidia-smi: failed or missing"
}

step_engines() {
  local good=0
  engine tensorrt tensorrt --target tensorrt && good=1
  engine tensorrt-rtx tensorrt_rtx_bindings --target tensorrt-rtx && good=1
  engine tensorrt-rtx-8.0 tensorrt_rtx_bindings --target tensorrt-rtx --compute-capability 8.0 && good=1
  engine tensorrt-rtx-current tensorrt_rtx_bindings --target tensorrt-rtx --compute-capability current && good=1
  [ $good -eq 1 ] || { say "engines: NONE runs here; speed measures torch and ONNX Runtime, named as such"; return 1; }
}

step_tests() {
  # A module whose imports are missing there, such as one of the trainer's, is an error and does not stop the others.
  run "pytest -m gpu" 600 "$python" -m pytest -q -m gpu -p no:cacheprovider --continue-on-collection-errors "$here/tests"
  run "dali mixed against cpu" 120 "$python" -m isicrt.benchmarks.gpu_dali "$(images)"
}

step_parity() {
  local model decode masks=()
  model=$(plan) || { say "parity: skipped, no plan runs here"; failed=1; return 1; }
  [ -z "$data" ] || masks=(--masks "$data/test/masks")
  for decode in cpu gpu; do
    run "parity, decoded on the $decode" 400 "${isicrt[@]}" check-parity unet-light "$model" --images "$(images)" \
      ${masks[@]+"${masks[@]}"} --decode "$decode" --json "$out/parity-$decode-decode.json"
  done
}

step_bench() {
  local model options=(--model unet-light --batch-size 1,2,4,8,16,32,64,128,256)
  if model=$(plan); then options+=(--model "$model"); else say "bench: no plan runs here, ONNX Runtime alone"; fi
  [ -z "$data" ] || options+=(--images "$data/test/images" --masks "$data/test/masks")
  run "bench" 590 "${isicrt[@]}" bench "${options[@]}" --json "$out/bench.json"
}

step_speed() {
  local model options=()
  if model=$(plan); then options=(--plan "$model"); else say "speed: no plan runs here, torch and ONNX Runtime alone"; fi
  run "speed" 590 "$python" -m isicrt.benchmarks.gpu_speed "$here/engine/models/unet-light.onnx" \
    ${options[@]+"${options[@]}"} --json "$out/speed.json"
}

step_train() {
  local name
  [ -n "$data" ] || { say "train: skipped, it needs --data"; return 1; }
  for name in unet segnet-attention segnet-attention-atrous; do
    run "train $name" 400 "${isicrt[@]}" train --data "$data" --recipe "$name-light" --epochs 5 --device cuda --cache \
      --encoder-weights "$weights" --out "$work/runs/$name"
  done
  run "collect the runs" 60 tar czf "$out/training.tar.gz" -C "$work" --exclude '*.pt' runs
}

if [ -z "$dry" ]; then
  mkdir -p "$out" "$work" || exit 2
  out=$(cd "$out" && pwd)
  : >"$out/summary.txt"
  : >"$out/suite.log"
  if [ -n "${SITE_PARTS:-}" ]; then
    # shellcheck disable=SC2086 # several files, and patterns
    mkdir -p "$site" && cat $SITE_PARTS | tar xJ -C "$site" || { echo "SITE_PARTS: cannot be unpacked" >&2; exit 2; }
  fi
fi
for step in "${steps[@]}"; do
  [ -n "$dry" ] && echo "[$step]"
  "step_$step" || failed=1
done
[ -n "$dry" ] && exit 0
echo "Results in $out"
exit $failed
