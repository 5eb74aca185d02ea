// The causes of failures, from what the API server showed of real pods on Kubernetes 1.35.1 with containerd: the last
// state of each pod before it went. Captured by `E2E_CAPTURE=FILE bun run e2e '^causes: each row'`; only the power
// failure and the pod that its node did not admit were written by hand into the pods' status.
import { describe, expect, test } from "bun:test"
import { type Cause, causeOf, type Job, type Pod, viewJob, viewPod } from "../../operator.ts"
import captured from "./captured_pods.json" with { type: "json" }

const causes: Record<keyof typeof captured, Cause> = {
  "an OOM kill": "oom",
  "an OOM kill whose pod the Job controller removes": "oom",
  "an OOM kill of an init container": "oom",
  "an OOM kill of a child process of the shell": "oom",
  "an eviction through the API": "evicted",
  "a pod that its node does not admit again": "evicted",
  "a deadline": "deadline",
  "an exit code": "exit:3",
  "an exit code with restartPolicy OnFailure": "exit:4",
  "an exit code of an init container": "exit:9",
  "SIGKILL without OOMKilled": "exit:137",
  "a native sidecar that ends later, with 143": "exit:3",
  "a native sidecar that ignores SIGTERM and is killed later": "exit:3",
  "a native sidecar that ends before the worker": "exit:3",
  "a Job with its own selector": "exit:3",
  "a helper that ends only because its pod is told to stop": "exit:3",
  "a container that cannot be started": "unknown",
  "exit code 255 that containerd invents after a power failure": "unknown",
}

describe("captured pods", () => {
  test.each(Object.entries(causes))("causeOf() %s is %s", (row, cause) => {
    const { reason, pods } = captured[row as keyof typeof captured]
    const condition = { type: "Failed", status: "True", reason, lastTransitionTime: "2026-11-27T14:27:45Z" }
    const job = { metadata: { name: "load-a" }, status: { conditions: [condition] } } as unknown as Job
    expect(pods.length).toBeGreaterThan(0)
    expect(causeOf(viewJob(job), (pods as unknown as Pod[]).map(viewPod))).toBe(cause)
  })
})
