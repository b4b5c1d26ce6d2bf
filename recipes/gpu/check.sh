#!/usr/bin/env bash
# Checks and measures maft on a machine with one GPU and no network; see README.md beside this file.
#
#   bash recipes/gpu/check.sh --out DIR [--wheels DIR] [--work DIR] [--minutes N | --seconds N] [--parts "card tests shapes ..."]
#                             [--limit PART=SECONDS]... [--set KEY=VALUE]... [--trained "1.5B 0.5B"]
set -uo pipefail
cd "$(dirname "$0")/../.."

wheels="" out="" work="${TMPDIR:-/tmp}/maft-gpu" total=480 quick="" python="${PYTHON:-python3}"
overrides="" trained=""
# What one part may take, in seconds; the whole ends in time all the same.
declare -A limit=([card]=60 [tests]=150 [steps]=120 [shapes]=150 [prepare]=90 [released]=90 [plain]=120 [batched]=150 [training]=150 [run]=300 [experiment]=600 [vllm_tests]=240 [vllm]=180)
parts="card tests steps shapes prepare released plain batched training run"
while (($#)); do
  case $1 in
    --wheels) wheels=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --work) work=$2; shift 2 ;;
    --minutes) total=$((60 * $2)); shift 2 ;;
    --seconds) total=$2; shift 2 ;;
    --parts) parts=$2; shift 2 ;;
    --limit) limit[${2%%=*}]=${2#*=}; shift 2 ;;
    --trained) trained=$2; shift 2 ;;
    --set) overrides="$overrides $2"; shift 2 ;;
    --quick) quick=--quick; shift ;;
    *) echo "check.sh: unknown option $1; see recipes/gpu/README.md" >&2; exit 2 ;;
  esac
done
[[ -n $out ]] || { echo "check.sh: --out DIR is missing: where the log and the results go" >&2; exit 2; }
mkdir -p "$out" "$work/site" "$work/wheels"
started=$SECONDS log="$out/log.txt"
: >"$log"


# A wheel too large to travel at once may come as name.whl.part-a, name.whl.part-b, also in several calls.
if [[ -n $wheels ]]; then
  cp -n "$wheels"/*.whl "$wheels"/*.whl.part-* "$work/wheels/" 2>/dev/null
  if [[ -e $(echo "$work"/wheels/*.part-a) && -e $(echo "$work"/wheels/*.part-b) ]]; then
    whole=$(echo "$work"/wheels/*.part-a)
    cat "$work"/wheels/*.part-* >"${whole%.part-a}" && rm "$work"/wheels/*.part-*
  fi
  for wheel in "$work"/wheels/*.whl; do
    [[ -e $wheel && ! -e $wheel.installed ]] || continue
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" "$wheel" \
      >>"$log" 2>&1 && touch "$wheel.installed" || echo "check.sh: $wheel could not be installed" | tee -a "$log"
  done
fi
export PYTHONPATH="$PWD/src:$PWD:$work/site${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MAFT_CACHE="${MAFT_CACHE:-$work/cache}"
echo "installed after $((SECONDS - started)) s" | tee -a "$log"

command_of() {
  case $1 in
    tests) echo "$python -m pytest -q -p no:cacheprovider -m gpu tests/test_samplers_batched.py" ;;
    vllm_tests) echo "$python -m pytest -q -p no:cacheprovider -m vllm --durations=8 tests/test_vllm_engine.py" ;;
    training) echo "$python -m bench.training shapes $quick $trained" ;;
    experiment)  # ends in time to gather what is finished
      echo "$python -m bench.experiment $work/experiment $out --seconds $(($2 - 20)) $overrides" ;;
    run) echo "$python -m maft run recipes/gpu/config.yaml runs_dir=$work/runs" ;;
    *) echo "$python -m bench.gpu $1 $quick" ;;
  esac
}

one() {  # a part, in the seconds that are left
  local part=$1 left=$((total - (SECONDS - started) - 5)) begun=$SECONDS seconds code
  if ((left < 10)); then
    echo "== $part: left out, no time" | tee -a "$log"
    return
  fi
  seconds=$((left < limit[$part] ? left : limit[$part]))
  timeout -k 5 "$seconds" $(command_of "$part" "$seconds") >"$work/$part.txt" 2>&1
  code=$?
  { echo "== $part"; cat "$work/$part.txt"; } >>"$log"
  echo "== $part: exit $code after $((SECONDS - begun)) s" | tee -a "$log"
  ((code == 0)) || tail -n 6 "$work/$part.txt" | cut -c -300
}

for group in $parts; do
  for part in ${group//+/ }; do one "$part" & done
  wait
done
"$python" -m bench.gpu_table "$work" "$out/results.json" | tee -a "$log"
