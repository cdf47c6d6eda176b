#!/usr/bin/env bash
# Runs named steps in order and says, on the last line, whether all of them passed.
#
#   run-steps.sh TITLE NAME COMMAND [NAME COMMAND]...
#
# A step that fails does not stop the ones after it: one run shows everything that is wrong.
set -uo pipefail

title=$1
shift
failed=()
started_s=$SECONDS
while (($# >= 2)); do
    name=$1 command=$2
    shift 2
    step_started_s=$SECONDS
    printf -- '--- %s: %s\n' "$name" "$command"
    if ! bash -c "$command"; then
        failed+=("$name")
    fi
    printf -- '--- %s took %d s\n' "$name" $((SECONDS - step_started_s))
done

took_s=$((SECONDS - started_s))
if ((${#failed[@]})); then
    printf '%s: FAILED (%s) after %d s\n' "$title" "$(IFS=,; echo "${failed[*]}")" "$took_s"
    exit 1
fi
printf '%s: all passed in %d s\n' "$title" "$took_s"
