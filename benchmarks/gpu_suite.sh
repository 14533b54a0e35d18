#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one go: does it run, is it right, how fast is it.
#
#   benchmarks/gpu_suite.sh [--dry-run] [--out DIR] [--data DIR] [--encoder-weights FILE] [--within SECONDS] [STEP...]
#
# Steps (default: all, in this order, the most important first; one that fails does not stop the others):
#   doctor   what is here                                              doctor.json
#   engines  plans of TensorRT and TensorRT for RTX: do they build, load and run here? That TensorRT for RTX refuses this
#            GPU's compute capability is said, and is a failure only where no other plan runs.
#   parity   masks of the GPU's way against ONNX Runtime's: the plan, decoded on the CPU and on the GPU, and torch in
#            its place, which needs no plan                            parity-{cpu,gpu}-decode.json, parity-torch.json
#   tests    python -m pytest -m gpu; what was skipped and why is in suite.log. That none passed is a failure.
#   host     what the CPU does on the GPU's way, as if the GPU took no time      host.json
#   compile  torch.compile, which takes a minute or two and whose result torch keeps for `speed`
#   speed    each stage alone and end to end; torch and ONNX Runtime    speed.json
#            Masks go to $MASKS, by default the system's temporary folder. Where that is a slow disk, end to end
#            measures the disk: call it with MASKS=/dev/shm as well.
#   queue    what a run waits for: the chain's calls in a run and alone, by processes and CPU threads      queue.json
#   bench    isicrt bench: the pipeline of `segment`, plan beside ONNX  bench.json
#   dali     DALI's decoding on the GPU against its own on the CPU
#   train    a short training run of each architecture                  training.tar.gz
#   table    the report's table at its own widths, all rows at once, in what is left of --within (without it 400 s):
#            training.json, report-table-gpu.json, runs.tar.gz; needs --data with its train and test split
#
# --out    where the results go; $OUT if that is set, else gpu-results. Logs are in suite.log, a line a command in
#          summary.txt. A call of the recipe below leaves at most eight files.
# --data   an ISIC 2016 folder (test/images, test/masks, train/...); $ISICRT_DATA if that is set. Without it rendered
#          images are used, and nothing is scored or trained. Is its name isic2016, the tests find it too.
# --encoder-weights  MobileNetV2's ImageNet weights, for `train`; without it the runs start from random weights.
# --within all steps together: no command runs on after so many seconds, and none begins in the last ten of them.
#
# On a machine that reaches no package index, carry what is missing there: wheels for that machine's Python, unpacked into
# one folder on PYTHONPATH. Set SITE_PARTS to files that make up a tar.xz of such a folder, in order, and they are unpacked
# into $SITE (default: a folder isicrt-site in the system's temporary one) first; without SITE_PARTS $SITE is used as it is.
# Called where there is no GPU, every step but `doctor` and `host` says so and the exit code is 1.
#
# Recipe, with the two helpers of the project's workplace (../shared/tools, not part of this repository), for a lent machine
# with CPython 3.12 that takes at most 64 MiB a call, and keeps ignored files between calls:
#
# This repository is 43 MB, of which a call carries every tracked file: commit for it on a branch of its own, without the
# folder benchmarks/results (19 MB, `git rm -rq benchmarks/results`; no step reads it) and never to be merged.
#
#   ../shared/tools/build_pycuda_wheel.sh build/wheels          # needs python3.12, g++ and CUDA headers, no driver
#   PART=28 ../shared/tools/pack_wheels.sh build/parts build/wheels/pycuda-*.whl tensorrt-rtx-cu13-libs==1.7.1.116 \
#     tensorrt-rtx-cu13-bindings==1.7.1.116 nvidia-nvimgcodec-cu13==0.9.0.20 nvidia-nvjpeg==13.0.4.44 'click>=8.4' \
#     cykooz-resizer simplejpeg isal pytools platformdirs
#   mkdir -p build/data/isic2016 && cp -r ISIC2016/test build/data/isic2016/                  # 9 MB: images and masks
#
# nvidia-nvjpeg is not optional: without it nvImageCodec decodes no JPEG on the GPU. It is that of CUDA 13.0, which is what
# driver 580 serves. nvcc is not needed, the kernels come as PTX, but the driver must serve CUDA 13. click is older there
# than setup.cfg asks for, or may be; pytools and platformdirs are PyCUDA's. From the machine's own image come numpy, onnx,
# onnxruntime, opencv-python-headless, pillow, rich, pytest and torch. All packages of NVIDIA go into the same folder. The
# packer leaves dependencies out: name each. The wheels are 130 MB, so at most five parts.
#
# Fifteen minutes of machine in all, its start and the transfers among them. A part a call (build/ is ignored by git), each
# with `true` as its command; the last one, which is smaller, with the data and the first look at correctness:
#
#   python3 -V; python3 -m pip list; nvidia-smi            # carry build/parts/site.tar.xz.00      2 min with the start
#   true                                                   # ... .01, then .02 and so on           30 s each
#   SITE_PARTS='build/parts/site.tar.xz.*' benchmarks/gpu_suite.sh --within 270 --data build/data/isic2016 \
#     doctor engines parity                                # carry the last part and build/data    5 min
#     # Where TensorRT is installed, its build alone may take 400 s and leave `parity` no time: then call
#     # `--within 590 doctor engines` by itself, and `parity` with what follows. $WORK keeps the plan.
#   benchmarks/gpu_suite.sh --within 270 --data build/data/isic2016 tests host speed  # the same warm machine: $SITE and
#                                                          # $WORK are still there; carry build/data  5 min
#
# Without TensorRT the wheels are 17 MB packed, and all of it is one call of less than 64 MiB. Compiling needs a C compiler
# and Python's headers there, and may go beside what is not timed:
#
#   python3 -V; nvidia-smi; command -v gcc; SITE_PARTS='build/parts/site.tar.xz.*' benchmarks/gpu_suite.sh --out $OUT/0 \
#     --within 60 doctor; benchmarks/gpu_suite.sh --out $OUT/1 --within 200 compile & sleep 2; benchmarks/gpu_suite.sh \
#     --out $OUT/2 --within 200 --data build/data/isic2016 tests parity; wait      # carry build/parts, build/data
#   benchmarks/gpu_suite.sh --within 165 speed             # the same warm machine
#   MASKS=/dev/shm benchmarks/gpu_suite.sh --within 120 speed
#   benchmarks/gpu_suite.sh --within 260 --data isic2016 --encoder-weights FILE table
#
# What fitted into a quarter of an hour of an H200, by the same commands: the start took 32 s with the first call,
# all up to the first `speed` 317 s (tests 110, speed 165), transfers 15 to 20 s for each call of up to 60 MiB, `table`
# 223 s with 28 epochs a row, the trainer's tests 79 s. Of `speed` the network took 14 s, end to end at 512 px 35 on that
# disk and 26 in memory, of the compiled engine 19 and at 1022 x 767 27, each other section 2 to 6; so 165 s end in the
# middle of 1022 x 767, and 60 s before the stages on the GPU.
#
# A third session had plans of TensorRT 8.6.0, the last one whose libraries are on the public index (one wheel of 819 MB, for
# CPython 3.6 to 3.10; docs/gpu-measurements.md). With CPython 3.10 there, its own bindings would do, with OLDEST_TENSORRT of
# engine/tensorrt_api.py lowered, each layer told its type (8.6 has no strong typing) and an engine for each context. Its
# library of kernels checks its own SHA-256 when a builder is made, so it is not to be cut: all of it is 333 MB packed (xz
# with a dictionary of 512 MiB), six calls. Of each call of 62 MiB the transfer took 5 s. What took how long: unpacking 23 s, a first build 130 s (batch of 8) and then 73 s (of 256, --opt-level 2), the same again 26 s,
# check-parity on 339 images 5 to 8 s, `speed` with the plan alone 127 s up to the end to end run of 12 megapixels
# (--engine 'the plan' --batches 128), `bench` on 16 cores 34 s.
#
# `dali`, `train` and `table` need DALI (nvidia-dali-cuda130, astunparse, gast, optree, nvtx, makefun and libcst), which is
# 476 MB unpacked, much of it code for other GPUs. It was carried as 47 MB: the fatbin containers in its libraries
# were rewritten to hold the cubins of sm_90 alone, and symbol tables were zeroed; cuobjdump showed the cubins unchanged, and
# it ran. Without DALI the trainer's test marked gpu is an error of collection. There was no time for `bench` and `train`.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,/^set -uo/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; }

all=(doctor engines parity tests host compile speed queue bench dali train table)
out=${OUT:-gpu-results} data=${ISICRT_DATA:-} weights=none within=0 dry= steps=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --out | --data | --encoder-weights | --within)
      [ $# -gt 1 ] || { echo "$1 needs a value" >&2; exit 2; }
      case $1 in --out) out=$2 ;; --data) data=$2 ;; --within) within=$2 ;; *) weights=$2 ;; esac
      shift ;;
    -h | --help) usage; exit 0 ;;
    doctor | engines | parity | tests | host | compile | speed | queue | bench | dali | train | table) steps+=("$1") ;;
    *) echo "unknown: $1 (steps: ${all[*]}; see --help)" >&2; exit 2 ;;
  esac
  shift
done
[ ${#steps[@]} -gt 0 ] || steps=("${all[@]}")
[ -z "$data" ] || [ -d "$data" ] || { echo "--data $data: no such folder" >&2; exit 2; }
case $within in '' | *[!0-9]*) echo "--within $within: not a number of seconds" >&2; exit 2 ;; esac
# Where the tests look for real data: the folder that isic2016 lies in.
if [ -n "$data" ] && [ "$(basename "$data")" = isic2016 ] && [ -z "${ISICRT_SHARED_DATA:-}" ]; then
  ISICRT_SHARED_DATA=$(cd "$data/.." && pwd)
  export ISICRT_SHARED_DATA
fi

python=${PYTHON:-python3}
work=${WORK:-${TMPDIR:-/tmp}/isicrt-gpu-suite}
site=${SITE:-${TMPDIR:-/tmp}/isicrt-site}
# torch would put it below the TMPDIR of each command: what `compile` leaves is for `speed`, wherever that puts masks.
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$work/torchinductor}
export PYTHONUNBUFFERED=1 PYTHONPATH="$here:$site${PYTHONPATH:+:$PYTHONPATH}"
isicrt=("$python" -m isicrt.cli.main)
failed=0

say() { echo "$*"; [ -n "$dry" ] || echo "$*" >>"$out/summary.txt"; }

# run NAME SECONDS COMMAND...: one line in the summary, the output in the log. Where $refusal is set, a command that fails
# and says so is refused here, which is no failure of the suite.
run() {
  local name=$1 seconds=$2 rc started left note=
  shift 2
  if [ "$within" -gt 0 ]; then
    left=$((within - SECONDS))
    [ $left -ge 10 ] || { failed=1; say "$name: not begun, the time was up"; return 1; }
    [ $left -ge "$seconds" ] || seconds=$left
  fi
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
  if [ $rc -ne 0 ] && [ -n "${refusal:-}" ] && sed -n "/^=== $name: /,\$p" "$out/suite.log" | grep -qE "$refusal"; then
    note="  refused here: not for this GPU's compute capability"
  elif [ $rc -ne 0 ]; then
    failed=1
  fi
  say "$(printf '%-34s rc %-3s %5s s' "$name" "$rc" "$((SECONDS - started))")$note"
  return $rc
}

finds_gpu() { "$python" -c "from isicrt.engine.cuda_driver import find_gpu; raise SystemExit(find_gpu() is None)" 2>/dev/null; }

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

# engine NAME MODULE OPTION...: build, then segment the examples with the plan. It is tuned for the batch that it runs.
engine() {
  # TensorRT for RTX builds nothing for a GPU that it does not know, and says of a plan for others that it is one.
  local name=$1 module=$2 seconds=120 unknown='Use --target tensorrt for it' others='\(UNSUPPORTED_CC\)'
  # TensorRT tries kernels on the GPU for as long as it takes: 73 s at --opt-level 2, and this is its usual 3.
  [ "$name" != tensorrt ] || seconds=400
  shift 2
  if [ -z "$dry" ] && ! has "$module"; then
    say "build $name: skipped, $module cannot be imported"
    return 1
  fi
  rm -f "$work/engine-$name/ran"
  refusal=$unknown run "build $name" $seconds "${isicrt[@]}" build-engine unet-light --fp16 --batch-size 256 \
    --images "$(images)" --parity-images 16 --out "$work/engine-$name" "$@" &&
    refusal=$others run "run $name" 60 "${isicrt[@]}" segment "$here/examples/images" --out "$work/masks-$name" --overwrite \
      --model "$work/engine-$name/model.plan" --decode cpu &&
    { [ -n "$dry" ] || touch "$work/engine-$name/ran"; } &&
    # Whether the GPU decodes too is another question: a plan that ran is good for the other steps.
    { run "run $name, decoded there" 60 "${isicrt[@]}" segment "$here/examples/images" --out "$work/gpu-masks-$name" \
      --overwrite --model "$work/engine-$name/model.plan" --decode gpu || true; }
}

step_doctor() {
  run "doctor" 90 bash -c '"$@" doctor --json >"$0/doctor.json"' "$out" "${isicrt[@]}"
  [ -z "$dry" ] || return 0
  nvidia-smi >>"$out/suite.log" 2>&1 || say "nvidia-smi: failed or missing"
}

step_engines() {
  local good=0
  engine tensorrt tensorrt --target tensorrt && good=1
  engine tensorrt-rtx tensorrt_rtx_bindings --target tensorrt-rtx && good=1
  engine tensorrt-rtx-8.0 tensorrt_rtx_bindings --target tensorrt-rtx --compute-capability 8.0 && good=1
  engine tensorrt-rtx-current tensorrt_rtx_bindings --target tensorrt-rtx --compute-capability current && good=1
  [ $good -eq 1 ] || { say "engines: NONE runs here; parity and speed have torch in its place, named as such"; return 1; }
}

step_parity() {
  local model decode masks=()
  [ -z "$data" ] || masks=(--masks "$data/test/masks")
  if model=$(plan); then
    for decode in gpu cpu; do
      run "parity, decoded on the $decode" 120 "${isicrt[@]}" check-parity unet-light "$model" --images "$(images)" \
        ${masks[@]+"${masks[@]}"} --decode "$decode" --json "$out/parity-$decode-decode.json"
    done
  else
    say "parity: no plan runs here, torch alone"
    failed=1
  fi
  run "parity, torch in the plan's place" 120 "$python" -m isicrt.benchmarks.gpu_parity \
    "$here/engine/models/unet-light.onnx" --images "$(images)" ${masks[@]+"${masks[@]}"} --json "$out/parity-torch.json"
}

step_tests() {
  # A module whose imports are missing there, such as one of the trainer's, is an error and does not stop the others.
  # Other versions of other people's packages may warn there; here a warning is an error, and no result would come back.
  local rc=0 said
  run "pytest -m gpu" 180 "$python" -m pytest -q -ra -m gpu -W default -p no:cacheprovider \
    --continue-on-collection-errors "$here/tests" || rc=$?
  [ -z "$dry" ] || return $rc
  # Its last line: where everything is skipped, its exit code is 0 all the same.
  said=$(sed -n '/^=== pytest -m gpu: /,$p' "$out/suite.log" | grep -E '^([0-9]+ |no tests ran).* in [0-9.]+s' | tail -n 1)
  say "  ${said:-it did not come to its end}"
  grep -qE '(^|[^0-9])[1-9][0-9]* passed' <<<"$said" || { say "pytest -m gpu: NOTHING was tested"; return 1; }
  return $rc
}

step_host() {
  run "host" 60 "$python" -m isicrt.benchmarks.gpu_host --images "$(images)" --json "$out/host.json"
}

step_compile() { run "compile" 240 "$python" -m isicrt.benchmarks.gpu_torch "$here/engine/models/unet-light.onnx"; }

step_bench() {
  local model size options=(--model unet-light)
  for size in 1 2 4 8 16 32 64 128 256; do options+=(--batch-size "$size"); done
  if model=$(plan); then options+=(--model "$model"); else say "bench: no plan runs here, ONNX Runtime alone"; fi
  [ -z "$data" ] || options+=(--images "$data/test/images" --masks "$data/test/masks")
  run "bench" 590 "${isicrt[@]}" bench "${options[@]}" --json "$out/bench.json"
}

step_speed() {
  local model options=()
  if model=$(plan); then options=(--plan "$model" --cuda-model "${model%/*}/model.onnx"); else say "speed: no plan runs here, torch in its place"; fi
  # The command begins nothing after that long by itself, and what it has begun then has time to end.
  [ "$within" -eq 0 ] || options+=(--seconds 0.5 --compile-seconds 40 --within $((within - SECONDS > 30 ? within - SECONDS - 20 : 10)))
  TMPDIR=${MASKS:-${TMPDIR:-/tmp}} run "speed" 590 "$python" -m isicrt.benchmarks.gpu_speed "$here/engine/models/unet-light.onnx" \
    ${options[@]+"${options[@]}"} --json "$out/speed.json"
}

step_queue() {
  local model options=()
  if model=$(plan); then options=(--plan "$model"); else say "queue: no plan runs here, torch in its place"; fi
  [ "$within" -eq 0 ] || options+=(--within $((within - SECONDS > 30 ? within - SECONDS - 20 : 10)))
  TMPDIR=${MASKS:-${TMPDIR:-/tmp}} run "queue" 240 "$python" -m isicrt.benchmarks.gpu_queue \
    "$here/engine/models/unet-light.onnx" ${options[@]+"${options[@]}"} --json "$out/queue.json"
}

step_dali() { run "dali mixed against cpu" 120 "$python" -m isicrt.benchmarks.gpu_dali "$(images)"; }

step_train() {
  local name
  [ -n "$data" ] || { say "train: skipped, it needs --data"; return 1; }
  for name in unet segnet-attention segnet-attention-atrous; do
    run "train $name" 400 "${isicrt[@]}" train --data "$data" --recipe "$name-light" --epochs 5 --device cuda --cache \
      --encoder-weights "$weights" --out "$work/runs/$name"
  done
  run "collect the runs" 60 tar czf "$out/training.tar.gz" -C "$work" --exclude '*.pt' runs
}

step_table() {
  [ -n "$data" ] || { say "table: skipped, it needs --data"; return 1; }
  local seconds=400
  # It is told the time that it has, so that it ends by itself with a whole table.
  [ "$within" -eq 0 ] || seconds=$((within - SECONDS - 5))
  [ $seconds -ge 20 ] || seconds=20
  run "table" $((seconds + 5)) "$python" -m isicrt.benchmarks.gpu_training --data "$data" --encoder-weights "$weights" \
    --out "$out" --within "$seconds"
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
gpu=1
[ -n "$dry" ] || finds_gpu || gpu=
for step in "${steps[@]}"; do
  [ -n "$dry" ] && echo "[$step]"
  # `speed` and `bench` measure the CPU's part then, and would be content with that.
  case $step in doctor | host) ;; *) [ -n "$gpu" ] || { failed=1; say "$step: no NVIDIA GPU with a driver here"; } ;; esac
  "step_$step" || failed=1
done
[ -n "$dry" ] && exit 0
[ ! -f "$out/speed.json" ] || "$python" -m isicrt.benchmarks.gpu_verdict "$out/speed.json"
echo "Results in $out"
exit $failed
