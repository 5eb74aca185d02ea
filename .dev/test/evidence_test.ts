// The evidence of a failure, as class Operator gathers it from the embedded API server over real HTTPS. An id in a name
// is a report, listed in .github/docs/reports.md.
import { describe, expect, test } from "bun:test"
import { type ConfigMap, readRecord, textRecord } from "../../operator.ts"
import type { Action } from "../apiserver/http.ts"
import type { Attempt, Pod } from "../apiserver/model.ts"
import { OPERATOR_ROLE } from "../apiserver/roles.ts"
import {
  afterLaterFailure,
  allBack,
  backOnce,
  callsOf,
  ended,
  exits,
  failedAgo,
  isBack,
  kubectlDelete,
  live,
  logs,
  person,
  run,
  type Server,
  serve,
  stand,
  standPod,
  tidyUp,
  timestamp,
  until,
} from "./acting_kit.ts"

tidyUp()

/** The records of failures, as the commands read them. */
const records = (server: Server) =>
  [...server.model.objects.configmaps!.values()].flatMap((map) => readRecord(map as ConfigMap) ?? [])

describe("The evidence", () => {
  /** Fails with restartPolicy OnFailure while its second attempt runs: no pod is left then. */
  const failsWithoutPods = (server: Server) =>
    run(server, "load-a", [exits(3, "one\n"), { containers: { main: { log: "two\n" } }, graceMs: 3_000 }], {
      pod: { restartPolicy: "OnFailure" },
      spec: { backoffLimit: 1 },
    })
  test("B01 a watch has kept exit code and log of pods that are gone when the Job fails", async () => {
    const server = await serve()
    const life = live(server, { DRY_RUN: "true" })
    await until("watching", () => callsOf(server, "watch", "pods").length + callsOf(server, "watch").length === 2)
    failsWithoutPods(server)
    await until("reported", () => life.about("load-a", /failed at.*exit:3, BackoffLimitExceeded/).length > 0)
    await until("no pod is left", () => server.model.pods().length === 0)
    expect(life.evidence("load-a")).toMatch(/exit code 3[\s\S]*\| (one|two)/)
  })
  test("B01 where pods are polled and gone, the failure is reported as the Job tells it", async () => {
    const server = await serve()
    failsWithoutPods(server)
    const failed = () => server.model.job("default", "load-a")?.status.conditions?.some(({ type }) => type === "Failed")
    await until("failed", failed)
    await until("no pod is left", () => server.model.pods().length === 0)
    const life = live(server, { DRY_RUN: "true", CHECK_INTERVAL: "3" }, { user: "old" })
    await until("reported", () => life.about("load-a", /failed at.*BackoffLimitExceeded, Job has reached/).length > 0)
    expect(life.evidence("load-a")).toBe("no pods left")
  })

  test("B01 pods that were polled while their Job was failing are its evidence when they are gone", async () => {
    const server = await serve()
    const life = live(server, { DRY_RUN: "true", CHECK_INTERVAL: "3" }, { user: "old" })
    await until("polling", () => callsOf(server, "list", "jobs").length > 0)
    failsWithoutPods(server)
    await until("looked at", () => logs(server).length > 0)
    await until("no pod is left", () => server.model.pods().length === 0)
    await until("reported", () => life.factsOf("FailureSeen").length > 0)
    expect(life.factsOf("FailureSeen")[0]?.cause).toBe("exit:3")
    expect(life.evidence("load-a")).toMatch(/exit code 3[\s\S]*\| (one|two)/)
  })

  test.each(["operator", "old"])(
    "J03 pods of a Job with its own selector are found under the Role of %s",
    async (user) => {
      const server = await serve()
      const labels = { run: "own-7" }
      const job = stand(server, "load-a", { spec: { manualSelector: true, selector: { matchLabels: labels } } })
      const status = { phase: "Failed", containerStatuses: [ended("main", 7)] }
      standPod(server, job, "q1", status, { labels: { ...labels, stands: "" } })
      const life = live(server, { DRY_RUN: "true" }, { user })
      await until("reported", () => life.factsOf("FailureSeen", "load-a").length > 0)
      expect(life.factsOf("FailureSeen", "load-a")[0]?.cause).toBe("exit:7")
    },
  )

  test("from the start all pods are watched where there is a Job with its own selector", async () => {
    const server = await serve()
    const spec = { manualSelector: true, selector: { matchLabels: { run: "own-7" } } }
    stand(server, "load-a", { status: { active: 1 }, spec })
    live(server)
    await until("watching", () => callsOf(server, "watch", "pods").length > 0)
    expect(callsOf(server, "watch", "pods")[0]?.query.labelSelector).toBeUndefined()
  })

  test("C01 each container's state and log are kept, with one request that names it", async () => {
    const server = await serve()
    const container = (name: string) => ({ name, image: "load:1" })
    const pod = { initContainers: [container("fetch")], containers: [container("worker"), container("mesh")] }
    const ends = {
      fetch: { log: "fetched\n" },
      worker: { exitCode: 137, reason: "OOMKilled", log: "a\nb\n" },
      mesh: { exitCode: 1, log: "mesh ends\n" },
    }
    const script = [{ runMs: 5, containers: ends }, {}]
    const life = live(server)
    const job = run(server, "load-a", script, { pod })
    await backOnce(server, [life], [job])
    expect(life.about("load-a", /failed at.*oom/).length).toBe(1)
    for (const part of [
      "fetch\\W+exit code 0[\\s\\S]*\\| fetched",
      "worker\\W+exit code 137, OOMKilled[\\s\\S]*\\| a\n *\\| b",
      "mesh\\W+exit code 1[\\s\\S]*\\| mesh ends",
    ])
      expect(life.evidence("load-a")).toMatch(new RegExp(part))
    expect(
      logs(server)
        .map(({ query }) => query.container)
        .sort(),
    ).toEqual(["fetch", "mesh", "worker"])
    expect(logs(server).every(({ query }) => query.previous === undefined)).toBe(true)
  })

  /** A Job whose pod 0 fails with exit code 3; the other nine, of the same second, are then told to stop. */
  function failsInParallel(server: Server, job = stand(server, "load-a")): void {
    const stop = { deletionTimestamp: timestamp(Date.now() + 30_000), deletionGracePeriodSeconds: 30 }
    const finalizers = ["example.test/hold"]
    for (const i of Array(10).keys()) {
      const status = { phase: "Failed", containerStatuses: [ended("main", i === 0 ? 3 : 143)] }
      standPod(server, job, `q${i}`, status, i === 0 ? {} : { ...stop, finalizers })
    }
  }
  test("of many parallel pods the one that failed by itself is the cause, and among the few kept", async () => {
    const server = await serve()
    failsInParallel(server)
    const life = live(server, { RESTART_RULES: "exit:3=6h" })
    await until("waiting", () => life.about("load-a", /restarted at .*exit:3=6h/).length > 0)
    expect(life.factsOf("FailureSeen", "load-a")[0]?.cause).toBe("exit:3")
    expect(life.evidence("load-a")).toMatch(/^pod q0 .*[\s\S]*exit code 3[\s\S]*and 5 more pods$/)
    await until("recorded", () => records(server).length > 0)
    expect(records(server)[0]?.evidence.pods.map(({ name }) => name)).toEqual(["q0", "q6", "q7", "q8", "q9"])
  })
  test("of many pods of a Job that somebody deletes at once, few are recorded", async () => {
    const server = await serve({ gcMs: 1e9 })
    const life = live(server, { CHECK_INTERVAL: "600" })
    await until("watching", () => callsOf(server, "watch", "pods").length + callsOf(server, "watch").length === 2)
    const metadata = { name: "load-a", uid: crypto.randomUUID(), finalizers: [] }
    // Two watches have no order: the pods are seen first.
    failsInParallel(server, { metadata } as unknown as ReturnType<typeof stand>)
    await until("its pods are seen", () => life.operator.cache.podsOf(metadata.uid).length === 10)
    // Its failure and its end are seen in one burst: nobody looks at the pods.
    stand(server, "load-a", { metadata })
    kubectlDelete(server, "load-a")
    await until("recorded", () => records(server).length > 0)
    expect(life.factsOf("DeletedByOthers", "load-a").length).toBe(1)
    expect(records(server)[0]?.evidence.pods.length).toBe(5)
  })

  test("a pod that cannot be understood is named once, and hides no other, in a list nor in a watch", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { status: { active: 1 } })
    const labels = { "batch.kubernetes.io/job-name": "load-a" }
    const nonsense = { phase: "Running", containerStatuses: "none" }
    standPod(server, job, "listed", nonsense, { labels })
    const life = live(server, { DRY_RUN: "true", RESTART_RULES: "exit:3=never" })
    await until("named", () => life.factsOf("NotUnderstood").length > 0)
    standPod(server, job, "watched", nonsense, { labels })
    await until("named, too", () => life.factsOf("NotUnderstood").length > 1)
    standPod(server, job, "q1", { phase: "Failed", containerStatuses: [ended("main", 3)] }, { labels })
    await until("seen", () => life.operator.cache.podsOf(job.metadata.uid).length > 0)
    expect(life.factsOf("NotUnderstood").map((fact) => fact.job.name)).toEqual(["listed", "watched"])
    expect(life.said.filter(({ text }) => /cannot be watched/.test(text))).toEqual([])
  })

  test("the exit code of an init container that fails is the cause, and its log is kept", async () => {
    const server = await serve()
    const life = live(server)
    const pod = { initContainers: [{ name: "fetch", image: "load:1" }] }
    const job = run(server, "load-a", [{ containers: { fetch: { exitCode: 9, log: "no route\n" } } }, {}], { pod })
    await backOnce(server, [life], [job])
    expect(life.about("load-a", /failed at.*exit:9/).length).toBe(1)
    expect(life.evidence("load-a")).toMatch(
      /init container fetch\W+exit code 9[\s\S]*\| no route[\s\S]*container main\W+never started/,
    )
  })

  const init = (name: string, restartPolicy?: string) => ({
    name,
    image: "load:1",
    ...(restartPolicy && { restartPolicy }),
  })
  test.each([
    ["no other container", []],
    ["an init container", [init("fetch")]],
    ["a sidecar", [init("mesh", "Always")]],
  ])("how its container ended is known of a pod that somebody deletes, with %s in it", async (_, initContainers) => {
    const server = await serve()
    const life = live(server, { DRY_RUN: "true" })
    const script = [{ containers: { main: { log: "one\n" }, fetch: { exitCode: 0 } }, graceMs: 20 }]
    const job = run(server, "load-a", script, { pod: { initContainers } })
    const main = () =>
      life.operator.cache
        .podsOf(job.metadata.uid)
        .flatMap(({ containers }) => containers.filter((c) => c.name === "main"))
    await until("running", () => main().some(({ state }) => state === "running"))
    person(server, "delete", server.model.pods()[0]!.metadata.name, {}, "pods")
    await until("failed", () => life.factsOf("FailureSeen", "load-a").length > 0)
    expect(life.factsOf("FailureSeen", "load-a")[0]?.cause).toMatch(/^exit:1(37|43)$/)
  })

  test("a sidecar that failed too often is the cause, not the worker that was stopped for it", async () => {
    const server = await serve()
    const life = live(server, { DRY_RUN: "true" }, { rate: 1 })
    const { uid } = stand(server, "load-a", { status: { active: 1 } }).metadata
    const terminated = (exitCode: number) => ({ terminated: { exitCode, finishedAt: timestamp(Date.now()) } })
    /** The pod as it stands, and then as it stops. */
    const tell = (metadata: object, main: object, mesh: object) =>
      server.model.put({
        kind: "Pod",
        metadata: {
          name: "q1",
          uid: "q1",
          labels: { "batch.kubernetes.io/job-name": "load-a" },
          ownerReferences: [{ apiVersion: "batch/v1", kind: "Job", name: "load-a", uid, controller: true }],
          finalizers: ["example.test/hold"],
          ...metadata,
        },
        spec: { restartPolicy: "OnFailure", initContainers: [init("mesh", "Always")], containers: [init("main")] },
        status: {
          phase: "Running",
          initContainerStatuses: [{ name: "mesh", restartCount: 1, state: mesh, lastState: terminated(3) }],
          containerStatuses: [{ name: "main", state: main }],
        },
      })
    const known = () => life.operator.cache.podsOf(uid)[0]
    tell({}, { running: {} }, { running: {} })
    await until("known", () => known())
    const stop = { deletionTimestamp: timestamp(Date.now() + 30_000), deletionGracePeriodSeconds: 30 }
    tell(stop, { running: {} }, { running: {} })
    await until("told to stop", () => known()?.deleting)
    tell(stop, terminated(143), terminated(143))
    server.model.setStatus("jobs", "default", "load-a", failedAgo())
    await until("failed", () => life.factsOf("FailureSeen", "load-a").length > 0)
    expect(life.factsOf("FailureSeen", "load-a")[0]?.cause).toBe("exit:3")
  })

  test("B09 a deadline is the cause, whether the Job or the pod tells it", async () => {
    const server = await serve()
    const jobs = [
      stand(server, "by-job", { status: failedAgo(5_000, { reason: "DeadlineExceeded" }) }),
      stand(server, "by-pod"),
    ]
    const status = { phase: "Failed", reason: "DeadlineExceeded", containerStatuses: [ended("main", 137)] }
    standPod(server, jobs[1]!, "q1", status)
    server.fault({ subresource: "log" }, { status: 400, reason: "BadRequest" }, { times: 99 })
    const life = live(server)
    await backOnce(server, [life], jobs)
    for (const { metadata } of jobs) expect(life.about(metadata.name, /failed at.*: deadline/).length).toBe(1)
    expect([logs(server).length, life.evidence("by-job")]).toEqual([1, "no pods left"])
  })

  test("a pod that a silent watch has not shown is listed: the last attempt decides", async () => {
    const server = await serve()
    server.fault({ verb: "watch", resource: "pods" }, { hang: true })
    const job = stand(server, "load-a", { status: {}, spec: { parallelism: 0 } })
    const at = (minute: number) => ({ finishedAt: `2026-03-01T12:0${minute}:00Z` })
    standPod(server, job, "q1", { phase: "Failed", containerStatuses: [ended("main", 7, at(1))] })
    const life = live(server)
    await until("listed", () => life.operator.cache.podsOf(job.metadata.uid).length === 1)
    standPod(server, job, "q2", { phase: "Failed", containerStatuses: [ended("main", 3, at(2))] })
    server.model.put({ ...job, status: { ...failedAgo(), failed: 2 } })
    await until("seen", () => life.factsOf("FailureSeen", "load-a").length > 0)
    expect(life.factsOf("FailureSeen", "load-a")[0]?.cause).toBe("exit:3")
  })

  const waitsFor = (name: string, reason: string, message: string) =>
    ({ containerStatuses: [{ name, state: { waiting: { reason, message } } }] }) as Partial<Pod["status"]>
  /** A Job whose pod waits for a Secret. */
  async function cannotStart(server: Server) {
    const job = run(server, "load-a", [{ imagePull: "ErrImagePull" }])
    const pod = () => server.model.pods()[0]
    const waitsWith = () => pod()?.status.containerStatuses?.[0]?.state?.waiting?.reason
    await until("a pod that waits", () => waitsWith() === "ErrImagePull")
    const wait = (message: string) =>
      server.model.setPodStatus(
        "default",
        pod()!.metadata.name,
        waitsFor("main", "CreateContainerConfigError", message),
      )
    return { job, wait }
  }
  test("B12 a Job whose image cannot be pulled is reported, and not restarted", async () => {
    const server = await serve()
    const { job } = await cannotStart(server)
    const life = live(server)
    await until("warned", () => life.about("load-a", /cannot start.*ErrImagePull/).length > 0)
    await afterLaterFailure(server, life)
    expect(isBack(server, job)).toBe(false)
  })
  test.each(["ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed", "PreStartHookError"])(
    "B12 a Job that cannot start is reported with whatever reason the kubelet has: %s",
    async (reason) => {
      const server = await serve()
      const life = live(server)
      run(server, "load-a", [{ imagePull: reason }])
      await until("warned", () => life.about("load-a", /cannot start/).length > 0)
      expect(life.factsOf("CannotStart", "load-a")).toEqual([expect.objectContaining({ reason })])
    },
  )
  test("B12 a Job whose pod a virtual kubelet is about to start is not reported", async () => {
    const server = await serve()
    const life = live(server)
    run(server, "load-a", [{ imagePull: "Pulling" }])
    await until("waiting", () =>
      [...life.operator.cache.jobs.values()].some(({ view }) =>
        life.operator.cache.podsOf(view.uid).some(({ containers }) => containers[0]?.reason === "Pulling"),
      ),
    )
    expect(life.factsOf("CannotStart", "load-a")).toEqual([])
  })
  test("B12 a Job that cannot start is reported once, though its reason changes", async () => {
    const server = await serve()
    const { wait } = await cannotStart(server)
    wait("secret missing")
    const life = live(server)
    await until("warned", () => life.about("load-a", /CreateContainerConfigError: secret missing/).length > 0)
    wait("secret still missing")
    life.clock.jump(600_000)
    await afterLaterFailure(server, life)
    expect(life.about("load-a", /cannot start/).length).toBe(1)
  })
  test("B12 when its deadline fails a Job that could not start, the evidence tells what it waited for", async () => {
    const server = await serve()
    const { job, wait } = await cannotStart(server)
    wait("secret missing")
    const life = live(server)
    await until("warned", () => life.about("load-a", /cannot start/).length > 0)
    server.model.setStatus("jobs", "default", "load-a", failedAgo(0, { reason: "DeadlineExceeded" }))
    await until("back", () => isBack(server, job))
    expect(life.evidence("load-a")).toMatch(/never started, CreateContainerConfigError, secret missing/)
    expect(logs(server)).toEqual([])
  })

  test("C03 C11 a log that cannot be read is a note beside the others, and holds up no restart", async () => {
    const server = await serve()
    const codes = [400, 403, 404, 410, 429, 500]
    const jobs = codes.map((code) => stand(server, `log-${code}`))
    for (const [i, job] of jobs.entries()) {
      const lost = ended("lost", 0, { startedAt: null, finishedAt: null })
      standPod(server, job, `a-${codes[i]}`, { phase: "Failed", containerStatuses: [ended("main", 3), lost] })
      standPod(server, job, `b-${codes[i]}`, {
        phase: "Pending",
        containerStatuses: [{ name: "main", state: { waiting: { reason: "PodInitializing" } } }],
      })
      server.fault(
        { subresource: "log", when: ({ name, query }) => name === `a-${codes[i]}` && query.container === "lost" },
        { status: codes[i]!, retryAfterSeconds: 30 },
        { times: 9 },
      )
    }
    server.fault({ subresource: "log" }, { delayMs: 1 }, { times: 99 })
    const life = live(server)
    await backOnce(server, [life], jobs)
    for (const code of codes)
      expect(life.evidence(`log-${code}`)).toMatch(
        new RegExp(`log not available: ${code}[\\s\\S]*never started, PodInitializing`),
      )
    expect([logs(server).length, logs(server).filter(({ name }) => name?.startsWith("b-"))]).toEqual([
      2 * codes.length,
      [],
    ])
  })

  test.each([20, 100])("what a failure costs does not depend on how many pods are told to stop: %i", async (count) => {
    const server = await serve({ syncMs: 1e9 })
    const life = live(server, { DRY_RUN: "true" })
    const job = stand(server, "load-a", { status: { active: count } })
    const labels = { "batch.kubernetes.io/job-name": "load-a" }
    const names = Array.from({ length: count }, (_, i) => `q${String(i).padStart(3, "0")}`)
    const runs = { phase: "Running", containerStatuses: [{ name: "main", state: { running: {} } }] }
    for (const name of names) standPod(server, job, name, runs, { labels })
    await until("watched", () => life.operator.cache.podsOf(job.metadata.uid).length === count)
    const change = { resource: "pods", namespace: "default" } as const
    for (const name of names)
      server.model.request({ ...change, verb: "delete", name, body: { gracePeriodSeconds: 30 } })
    for (const name of names) {
      server.model.setPodStatus("default", name, { containerStatuses: [ended("main", 143) as never] })
      await Bun.sleep(1)
    }
    server.model.setStatus("jobs", "default", "load-a", failedAgo())
    await until("reported", () => life.factsOf("FailureSeen").length > 0)
    const looks = server.calls.filter(({ verb, query }) => verb === "list" && query.labelSelector?.endsWith("=load-a"))
    expect(looks.length).toBeLessThan(30)
    expect(logs(server).length).toBeLessThan(5 * 30)
    const { pods, logs: kept } = life.factsOf("FailureSeen")[0]!.evidence
    expect(pods.map(({ name }) => name)).toEqual(names.slice(-5))
    expect(pods.every(({ uid }) => kept.has(`${uid}/main`))).toBe(true)
  })

  test("at a start, and after an outage, pods are listed once for all Jobs that have failed", async () => {
    const server = await serve()
    const names = Array.from({ length: 30 }, (_, i) => `load-${i}`)
    const lists = () => callsOf(server, "list", "pods").length
    const status = { phase: "Failed", containerStatuses: [ended("main", 3)] }
    const failAll = (at: number) => {
      for (const [i, name] of names.slice(at, at + 15).entries())
        standPod(server, stand(server, name), `q${at + i}`, status)
    }
    failAll(0)
    const life = live(server, { RESTART_DELAY: "3600" }, { rate: 1 })
    await until("the first 15 are looked at", () => life.factsOf("FailureSeen").length === 15)
    expect(lists()).toBe(1)
    await server.stop()
    failAll(15)
    server.fault({ verb: "list", resource: "pods" }, { delayMs: 500 })
    await server.start()
    await until("the others, too", () => life.factsOf("FailureSeen").length === 30)
    expect(lists()).toBe(2)
    expect(life.factsOf("FailureSeen").every(({ cause }) => cause === "exit:3")).toBe(true)
  })

  test("once the failure is recorded, no pod and no log of it is kept but the lines that rules match", async () => {
    const server = await serve()
    const life = live(server, { RESTART_RULES: "log:/last/=1h" })
    const pod = { initContainers: [{ name: "fetch", image: "load:1" }] }
    const fetch = { log: "fetched\n" }
    run(
      server,
      "load-a",
      [{ runMs: 5, containers: { fetch, main: { exitCode: 3, log: "first words\nlast words\n" } } }],
      { pod },
    )
    await until("recorded", () => records(server).length > 0 && life.scheduled().length > 0)
    expect(records(server)[0]?.evidence.logs.size).toBe(2)
    const entry = life.operator.cache.jobs.get("default/load-a")
    expect(entry).toMatchObject({ evidence: undefined, collection: { pods: [] }, failure: { cause: "exit:3" } })
    expect(entry?.failure?.lines).toEqual(["last words"])
  })

  const outages: Record<string, Action> = {
    "429": { status: 429, retryAfterSeconds: 1 },
    "502": { status: 502 },
    "no answer": { drop: "before" },
  }
  test.each(Object.entries(outages))("pods that cannot be listed at first (%s) are listed again", async (_, outage) => {
    const server = await serve()
    const job = stand(server, "load-a")
    standPod(server, job, "q1", { phase: "Failed", containerStatuses: [ended("main", 3)] })
    server.fault({ verb: "list", resource: "pods" }, outage, { times: 2 })
    const life = live(server, { RESTART_RULES: "exit:3=never" }, { user: "old" })
    await until("reported", () => life.factsOf("FailureSeen").length > 0)
    expect(life.factsOf("FailureSeen")[0]?.cause).toBe("exit:3")
    await until("given up", () => life.about("load-a", /given up: rule exit:3/).length > 0)
  })
  test("pods that must not be listed are asked for once, and hold up no restart", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    server.fault({ verb: "list", resource: "pods" }, { status: 403, reason: "Forbidden" }, { times: 1 })
    const life = live(server, { DRY_RUN: "true" }, { user: "old" })
    await until("reported", () => life.factsOf("FailureSeen").length > 0)
    expect(life.factsOf("FailureSeen")[0]?.cause).toBe("unknown")
    expect(callsOf(server, "list", "pods").length).toBe(1)
    expect(isBack(server, job)).toBe(false)
  })
  test.each(Object.entries(outages))("J01 a log that cannot be read (%s) is tried once more", async (_, outage) => {
    const server = await serve()
    run(server, "load-a", [exits(3, "invalid token\n")])
    const conditions = () => server.model.job("default", "load-a")?.status.conditions ?? []
    await until("failed", () => conditions().some(({ type }) => type === "Failed"))
    server.fault({ subresource: "log" }, outage, { times: 1 })
    const life = live(server, { RESTART_RULES: "log:/invalid token/=never" })
    await until("reported", () => life.factsOf("FailureSeen").length > 0)
    expect([...life.factsOf("FailureSeen")[0]!.evidence.logs.values()].map(({ lines }) => lines)).toEqual([
      ["invalid token"],
    ])
    expect(logs(server).length).toBe(2)
  })
  test.each(Object.entries(outages))(
    "a log that cannot be read while its Job is failing (%s) is read again when it has failed",
    async (_, outage) => {
      const server = await serve()
      const hasFailed = () =>
        server.model.job("default", "load-a")?.status.conditions?.some(({ type }) => type === "Failed")
      server.fault({ subresource: "log", when: () => !hasFailed() }, outage, { times: 99 })
      const life = live(server, { RESTART_RULES: "log:/invalid token/=never" })
      // The second pod takes its time to stop: only then the Job has failed.
      const slow: Attempt = { runMs: 60_000, graceMs: 300 }
      run(server, "load-a", [exits(3, "invalid token\n"), slow], { spec: { parallelism: 2, completions: 2 } })
      await until("looked at", () => life.about("load-a", /failed at/).length > 0)
      expect(logs(server).some(({ status }) => status !== 200)).toBe(true)
      expect(life.evidence("load-a")).toContain("| invalid token")
      await until("given up", () => life.about("load-a", /given up: rule log:/).length > 0)
    },
  )

  test("C14 the previous run's log is asked for only where a container runs again", async () => {
    const server = await serve()
    const jobs = ["again", "waits", "first"].map((name) => stand(server, name))
    const lastState = { terminated: { exitCode: 3, reason: "Error" } }
    const states = [
      { state: { running: {} }, lastState, restartCount: 1 },
      { state: { waiting: { reason: "CrashLoopBackOff" } }, lastState, restartCount: 3 },
      { ...ended("main", 3), restartCount: 0 },
    ]
    for (const [i, job] of jobs.entries())
      standPod(server, job, `p-${job.metadata.name}`, {
        phase: "Running",
        containerStatuses: [{ name: "main", ...states[i] }],
      })
    const life = live(server)
    await backOnce(server, [life], jobs)
    const asked = Object.groupBy(logs(server), ({ name }) => name ?? "")
    expect(asked["p-again"]?.map(({ query }) => query.previous).toSorted()).toEqual(["true", undefined])
    expect([asked["p-waits"], asked["p-first"]].map((calls) => calls?.map(({ query }) => query.previous))).toEqual([
      [undefined],
      [undefined],
    ])
  })

  test("G04 where pods/log is forbidden, one warning names the missing rule and the restart goes on", async () => {
    const server = await serve()
    server.addUser(
      "no-logs",
      OPERATOR_ROLE.filter(({ resources }) => resources?.[0] !== "pods/log"),
    )
    const life = live(server, {}, { user: "no-logs" })
    const job = run(server, "load-a", [exits(3), {}])
    await backOnce(server, [life], [job])
    const missing = life.said.filter(
      ({ text, lines, level }) => level === "warning" && /get pods\/log/.test([text, ...lines].join("\n")),
    )
    expect(missing.length).toBe(1)
    expect(life.evidence("load-a")).toMatch(/exit code 3/)
  })

  test("C13 no secret of a Job, no token and no manifest is written, whatever fails", async () => {
    const server = await serve()
    server.addUser("secretive", OPERATOR_ROLE, { token: "t0ken-t0ken" })
    const env = [{ name: "API_KEY", value: "s3cr3t-demo" }]
    const applied = { "kubectl.kubernetes.io/last-applied-configuration": JSON.stringify({ spec: { env } }) }
    const job = stand(server, "load-a", {
      pod: { containers: [{ name: "main", image: "load:1", env }] },
      metadata: { annotations: applied },
    })
    const value = `core.EnvVar{Name:"API_KEY", Value:"s3cr3t-demo"}`
    const message = `Job.batch "load-a" is invalid: env[0]: Invalid value: ${value}`
    server.fault({ verb: "create", resource: "jobs" }, { status: 422, message }, { times: 2 })
    server.fault(
      { verb: "create", resource: "jobs" },
      { status: 500, message: "Authorization: Bearer t0ken-t0ken" },
      { times: 1 },
    )
    const life = live(server, {}, { user: "secretive", rate: 400 })
    await allBack(server, [job])
    const text = life.said.map(({ level, text, lines }) => textRecord(0, level, text, { lines })).join("")
    expect(text).toMatch(/Job.batch/)
    expect(text).not.toMatch(/s3cr3t-demo|t0ken-t0ken|last-applied/)
  })
})
