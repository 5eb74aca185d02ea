// A restart at the hands of class Operator, against the embedded API server over real HTTPS, in any weather. An id in a
// name is a report, listed in .github/docs/reports.md. A fault is what the server does to one call; a step is one call
// of a restart.
import { describe, expect, test } from "bun:test"
import { systemClock } from "../../operator.ts"
import type { Action, Call } from "../apiserver/http.ts"
import type { Job } from "../apiserver/model.ts"
import { OPERATOR_ROLE } from "../apiserver/roles.ts"
import {
  afterLaterEvent,
  afterLaterFailure,
  allBack,
  atStep,
  backOnce,
  bodyName,
  callsOf,
  content,
  creations,
  cronOwned,
  current,
  deletions,
  ended,
  exits,
  expectOnce,
  FAULTS,
  failedAgo,
  HELD,
  intents,
  isBack,
  isDryRun,
  kubectlDelete,
  type Life,
  live,
  logs,
  manifest,
  outcomesOf,
  person,
  release,
  removedByTtl,
  restartServer,
  run,
  scaleLimits,
  serve,
  stand,
  standAt,
  standIntent,
  standPod,
  steps,
  terminating,
  tidyUp,
  timestamp,
  until,
} from "./acting_kit.ts"

tidyUp()

describe("Bad weather within a restart", () => {
  test.each(Object.entries(FAULTS))("%s at any step: the Job is back once", async (fault, action) => {
    if (action.hang) scaleLimits()
    const server = await serve()
    const jobs = steps.map((step) => standAt(server, step))
    const [hit, times]: [Set<string>, number] = [new Set(), fault === "401" ? 2 : 1]
    for (const [i, job] of jobs.entries()) atStep(server, steps[i]!, job, () => hit.add(steps[i]!), action, times)
    const life = live(server)
    await backOnce(server, [life], jobs)
    expect([...hit].sort()).toEqual(steps.toSorted())
  })

  test("the API server restarts at any step", async () => {
    const all = await Promise.all(
      steps.map(async (step) => {
        const server = await serve()
        const job = standAt(server, step)
        atStep(server, step, job, () => restartServer(server, 60))
        return { server, job, life: live(server) }
      }),
    )
    for (const { server, job, life } of all) await backOnce(server, [life], [job])
  })

  /** One namespace and life for each step, and what befalls it there. */
  async function each(befall: (life: Life) => void, action?: Action) {
    const server = await serve()
    const all = steps.map((step) => {
      server.model.put({ kind: "Namespace", metadata: { name: step } })
      const job = standAt(server, step, { namespace: step })
      const life = live(server, { NAMESPACE: step })
      atStep(server, step, job, () => befall(life), action)
      return { job, life }
    })
    await Promise.all(all.map(({ life }) => life.done))
    return { server, all }
  }

  test("SIGTERM at any step ends the program with the Job in place and at most an intent to clean up", async () => {
    const { server, all } = await each((life) => life.stop())
    expect(all.map(({ job }) => current(server, job)?.metadata.name)).toEqual(steps)
    const next = all.map(({ job }) => live(server, { NAMESPACE: job.metadata.namespace }))
    await allBack(
      server,
      all.map(({ job }) => job),
    )
    for (const [i, { job }] of all.entries())
      expect([job.metadata.name, server.uids.get(`${steps[i]}/${steps[i]}`)?.length]).toEqual([steps[i]!, 2])
    expect(next.flatMap(({ said }) => said.filter(({ level }) => level === "error"))).toEqual([])
  })

  test.each([
    ["before the call is applied", { drop: "before" }],
    ["after the call was applied", undefined],
  ] as [string, Action | undefined][])(
    "killed at any step, %s, the next life restarts the Job once",
    async (_, action) => {
      const { server, all } = await each((life) => life.kill(), action)
      const jobs = all.map(({ job }) => job)
      expect(
        jobs.every(
          (job) =>
            current(server, job) ||
            intents(server).some(({ metadata }) => metadata.namespace === job.metadata.namespace),
        ),
      ).toBe(true)
      for (const { metadata } of jobs) live(server, { NAMESPACE: metadata.namespace })
      await allBack(server, jobs)
      expect(jobs.map(({ metadata: m }) => server.uids.get(`${m.namespace}/${m.name}`)?.length)).toEqual(
        steps.map(() => 2),
      )
      expect(jobs.map((job) => Bun.deepEquals(content(job), content(current(server, job)!)))).toEqual(
        steps.map(() => true),
      )
    },
  )

  test("killed while the old Job is terminating, the next life restarts it under the old Role", async () => {
    const server = await serve()
    const job = stand(server, "load-a", HELD)
    const first = live(server, {}, { user: "old" })
    await until("terminating", () => current(server, job)?.metadata.deletionTimestamp)
    first.kill()
    await first.done
    live(server, { JOB_SELECTOR: "app=other" }, { user: "old" })
    release(server, "load-a")
    await allBack(server, [job])
    expect(server.uids.get("default/load-a")?.length).toBe(2)
  })
})

const TERMINATING = 'object is being deleted: jobs.batch "load-a" already exists'

describe("The delete and the create", () => {
  test("A01 a Job whose replacement the server rejects (422) is not deleted until it is accepted", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const lift = server.fault(
      { verb: "create", resource: "jobs" },
      { status: 422, message: "selector not auto-generated" },
      { times: 99 },
    )
    const life = live(server, {}, { rate: 200 })
    const rejections = () => life.factsOf("RestartRejected", "load-a")
    await until("two tries", () => rejections().length > 1)
    expect(rejections().every(({ why }) => why.includes("selector not auto-generated"))).toBe(true)
    expect([deletions(server, "load-a"), current(server, job)?.metadata.uid]).toEqual([[], job.metadata.uid])
    const bodies = callsOf(server, "create").map(({ body }) => body as Job)
    expect(
      bodies.every(
        ({ spec }) => !spec.selector && Bun.deepEquals(spec.template.metadata?.labels, { app: "load-a", tier: "load" }),
      ),
    ).toBe(true)
    lift()
    await backOnce(server, [life], [job])
  })

  test("A04 a POST answered with AlreadyExists while the old Job is terminating is retried", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const action: Action = { status: 409, reason: "AlreadyExists", message: TERMINATING }
    const isCreate = (call: Call) => bodyName(call) === "load-a" && !isDryRun(call)
    server.fault({ verb: "create", resource: "jobs", when: isCreate }, action, { times: 3 })
    await backOnce(server, [live(server)], [job])
    expect(creations(server, "load-a").map(({ status }) => status)).toEqual([409, 409, 409, 201])
  })

  test("A06 B16 the new Job is not created before the old pods are gone, even if the old Job is absent", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const { uid, resourceVersion } = job.metadata
    const status = {
      phase: "Running",
      reason: "NodeLost",
      containerStatuses: [{ name: "main", state: { running: {} } }],
    }
    standPod(server, job, "q1", status, {
      deletionTimestamp: timestamp(Date.now()),
      deletionGracePeriodSeconds: 30,
      finalizers: ["example.test/hold"],
    })
    scaleLimits()
    server.fault({ subresource: "log" }, { hang: true }, { times: 9 })
    const life = live(server)
    await until("a delete", () => current(server, job)?.metadata.deletionTimestamp)
    expect(deletions(server, "load-a")[0]?.body).toEqual({
      propagationPolicy: "Foreground",
      preconditions: { uid, resourceVersion },
    })
    expect(life.evidence("load-a")).toMatch(/NodeLost[\s\S]*still running, exit code not known[\s\S]*no answer in 10s/)
    kubectlDelete(server, "load-a")
    expect(current(server, job)).toBeUndefined()
    const looks = callsOf(server, "list", "pods").length
    await until("looks for pods", () => callsOf(server, "list", "pods").length > looks + 5)
    expect(creations(server, "load-a")).toEqual([])
    person(server, "patch", "q1", { metadata: { finalizers: null, deletionGracePeriodSeconds: 0 } }, "pods")
    await backOnce(server, [life], [job])
  })

  test("A08 a Job whose deletion never ends holds up no other Job", async () => {
    const server = await serve()
    stand(server, "held", HELD)
    const others = Array.from({ length: 9 }, (_, i) => stand(server, `other-${i}`))
    const life = live(server)
    await until("nine", () => others.every((job) => isBack(server, job)))
    expect(life.about("held", /restarted in/)).toEqual([])
  })

  test("A08 a deletion that never ends is looked at ever more rarely, without a list", async () => {
    const server = await serve()
    const held = stand(server, "held", HELD)
    const life = live(server, { CHECK_INTERVAL: "60" })
    await until("terminating", () => current(server, held)?.metadata.deletionTimestamp)
    life.clock.go(3_600)
    const from = server.calls.length
    const began = life.clock.now()
    await until("two hours", () => life.clock.now() - began > 7_200_000)
    const calls = server.calls
      .slice(from)
      .filter(({ name, query }) => name === "held" || /held/.test(query.labelSelector ?? ""))
    expect(new Set(calls.map(({ verb }) => verb))).toEqual(new Set(["get"]))
    expect(calls.length).toBeLessThan(300)
    life.clock.go(50)
    release(server, "held")
    await backOnce(server, [life], [held])
  })

  test("A10 several events of one failure lead to one look at it and one restart", async () => {
    const server = await serve()
    const held = stand(server, "held", HELD)
    standPod(server, held, "q1", { phase: "Failed", containerStatuses: [ended("main", 3)] })
    server.fault({ subresource: "log" }, { delayMs: 60 }, { times: 9 })
    const life = live(server)
    await until("a look", () => logs(server).length > 0)
    for (const failed of [2, 3]) server.model.setStatus("jobs", "default", "held", { failed })
    await until("terminating", () => current(server, held)?.metadata.deletionTimestamp)
    for (const failed of [4, 5]) server.model.setStatus("jobs", "default", "held", { failed })
    release(server, "held")
    await backOnce(server, [life], [held])
    expect([creations(server, "held").length, logs(server).length]).toEqual([1, 1])
  })

  test("A10 a failed Job that someone else deletes is not restarted", async () => {
    const server = await serve()
    stand(server, "theirs", { metadata: { finalizers: ["example.test/hold"], labels: { app: "theirs" } } })
    server.fault({ verb: "get", resource: "jobs", name: "theirs" }, { status: 503 }, { times: 99 })
    const life = live(server)
    kubectlDelete(server, "theirs")
    await until("seen", () => life.about("theirs", /./).length > 0)
    release(server, "theirs")
    await until("reported", () => life.about("theirs", /deleted|cancel|changed/).length > 0)
    await afterLaterFailure(server, life)
    expect(server.uids.get("default/theirs")?.length).toBe(1)
  })

  test("A12 a Job that a TTL of 0 removes is created again when it is due, with its logs kept", async () => {
    const server = await serve({ gcMs: 1_000 })
    const life = live(server, { RESTART_DELAY: "3600" })
    await until("watching", () => server.calls.filter(({ verb }) => verb === "watch").length === 2)
    const job = run(server, "load-a", [exits(3, "last words\n"), {}], { spec: { ttlSecondsAfterFinished: 0 } })
    await until("gone", () => !current(server, job))
    life.clock.jump(3_600_000)
    await allBack(server, [job])
    expectOnce(server, [life], [job])
    expect(life.about("load-a", /failed at.*exit:3/).length).toBe(1)
    expect([life.evidence("load-a"), logs(server).length]).toEqual([expect.stringContaining("| last words"), 1])
    const failedAt = Date.parse(/failed at (\S+Z)/.exec(life.about("load-a", /failed at/)[0]!.text)?.[1] ?? "")
    expect(life.clock.at(creations(server, "load-a")[0]!.at)).toBeGreaterThanOrEqual(failedAt + 3_600_000)
  })

  test("A12 a Job that a person creates again after its TTL took it follows its own due time", async () => {
    const server = await serve({ gcMs: 80 })
    const life = live(server, { RESTART_DELAY: "7200" }, { rate: 100 })
    await until("watching", () => server.calls.filter(({ verb }) => verb === "watch").length === 2)
    run(server, "load-a", [exits(3), {}], { spec: { ttlSecondsAfterFinished: 0 } })
    await until("it waits", () => life.factsOf("IntentWritten").length === 1)
    const again = run(server, "load-a", [{}, exits(3), {}], {
      metadata: { annotations: { "flickr-immich-k8s-sync-operator/restart-delay": "0" } },
    })
    await allBack(server, [again])
    await until("no intent", () => intents(server).length === 0)
    const outcomes = () => life.factsOf("RestartFinished").map(({ outcome }) => outcome.result)
    await until("reported", () => outcomes().length === 2)
    expect(outcomes()).toEqual(["replaced", "restarted"])
  })

  test("A12 a Job that its TTL takes just as its restart begins is created again when it is due", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { spec: { ttlSecondsAfterFinished: 12 } })
    atStep(server, "look", job, () => removedByTtl(server, "load-a"))
    await backOnce(server, [live(server, { RESTART_DELAY: "60" })], [job])
  })

  test("A12 a delete that is answered with 404 counts as done", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    atStep(server, "delete", job, () => kubectlDelete(server, "load-a"))
    await backOnce(server, [live(server)], [job])
  })

  test("A13 a person's delete during the delay cancels the restart, also of a Job with a TTL", async () => {
    const server = await serve()
    const jobs = [stand(server, "plain"), stand(server, "with-ttl", { spec: { ttlSecondsAfterFinished: 7_200 } })]
    const life = live(server, { RESTART_DELAY: "600" })
    await until("scheduled", () => life.scheduled().length === 2)
    life.clock.jump(100_000)
    for (const { metadata } of jobs) kubectlDelete(server, metadata.name)
    await until("unscheduled", () => life.scheduled().length === 0)
    life.clock.jump(3_600_000)
    await afterLaterFailure(server, life)
    expect(jobs.map(({ metadata }) => creations(server, metadata.name))).toEqual([[], []])
    for (const { metadata } of jobs) expect(life.about(metadata.name, /deleted by someone/).length).toBe(1)
  })

  test("A15 a Job that someone else creates meanwhile counts as the restart and stays untouched", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const theirs = { annotations: { "argocd.argoproj.io/tracking-id": "app:batch/Job:default/load-a" } }
    atStep(server, "create", job, () => stand(server, "load-a", { metadata: theirs, status: {} }))
    const life = live(server)
    await allBack(server, [job])
    await until("over", () => outcomesOf(life, "load-a").length > 0)
    expect(outcomesOf(life, "load-a")).toEqual(["replaced"])
    expect([
      current(server, job)?.metadata.annotations,
      creations(server, "load-a").map(({ status }) => status),
    ]).toEqual([theirs.annotations, [409]])
    expect(deletions(server, "load-a").length).toBe(1)
  })

  test("an edit of the terminating Job reaches the new one, even if it is gone right after the edit", async () => {
    const server = await serve()
    const jobs = [stand(server, "slow", HELD), stand(server, "quick", HELD)]
    const life = live(server, {}, { rate: 1 })
    await until("terminating", () => jobs.every((job) => current(server, job)?.metadata.deletionTimestamp))
    const edit = { metadata: { annotations: { note: "edited" } }, spec: { ttlSecondsAfterFinished: 77 } }
    person(server, "patch", "slow", edit)
    await until(
      "a second intent",
      () => callsOf(server, "create", "jobs", (call) => /^slow-restart/.test(bodyName(call))).length === 2,
    )
    person(server, "patch", "quick", edit)
    for (const { metadata } of jobs) release(server, metadata.name)
    life.clock.go(50)
    await allBack(server, jobs)
    for (const job of jobs) {
      const { metadata, spec } = current(server, job)!
      expect([metadata.name, metadata.annotations?.note, spec.ttlSecondsAfterFinished]).toEqual([
        metadata.name,
        "edited",
        77,
      ])
      expect(server.uids.get(`default/${metadata.name}`)?.length).toBe(2)
    }
  })

  test("a person who deletes the intent cancels the restart", async () => {
    const server = await serve()
    const job = stand(server, "held", HELD)
    const life = live(server)
    await terminating(server, job)
    kubectlDelete(server, intents(server)[0]!.metadata.name)
    release(server, "held")
    await until("over", () => outcomesOf(life, "held").length > 0)
    await afterLaterFailure(server, life)
    await until("no other intents", () => intents(server).length === 0)
    expect([current(server, job), creations(server, "held"), outcomesOf(life, "held")]).toEqual([
      undefined,
      [],
      ["cancelled"],
    ])
  })

  test("a Job edited between intent and delete is restarted with the edit when it is due again", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const edit = { metadata: { annotations: { note: "edited" } } }
    atStep(server, "delete", job, () => person(server, "patch", "load-a", edit))
    const life = live(server, { CHECK_INTERVAL: "20" })
    await until("left", () => life.about("load-a", /changed/).length > 0)
    expect([current(server, job)?.metadata.uid, intents(server).length]).toEqual([job.metadata.uid, 0])
    await allBack(server, [job])
    expect([current(server, job)?.metadata.annotations?.note, server.uids.get("default/load-a")?.length]).toEqual([
      "edited",
      2,
    ])
  })

  test("a Job replaced between intent and delete is left alone", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    atStep(server, "delete", job, () => {
      kubectlDelete(server, "load-a")
      stand(server, "load-a", { status: {} })
    })
    const life = live(server)
    await until(
      "ended",
      () => isBack(server, job) && deletions(server, "load-a").length > 0 && intents(server).length === 0,
    )
    await afterLaterFailure(server, life)
    expect([server.uids.get("default/load-a")?.length, deletions(server, "load-a")[0]?.status]).toEqual([2, 409])
    expect(life.said.filter(({ level }) => level === "error")).toEqual([])
  })

  test.each([1, 2])("a quota with room for %i Jobs deletes nothing until there is room for a restart", async (hard) => {
    const server = await serve()
    const job = stand(server, "load-a")
    const quota = (most: number) =>
      server.model.put({
        kind: "ResourceQuota",
        metadata: { name: "few" },
        spec: { hard: { "count/jobs.batch": String(most) } },
      })
    quota(hard)
    const life = live(server)
    await until("rejected", () => life.factsOf("RestartRejected").length > 0)
    expect(life.factsOf("RestartRejected")[0]?.why).toContain("exceeded quota: few")
    expect([deletions(server, "load-a"), current(server, job)?.metadata.uid]).toEqual([[], job.metadata.uid])
    quota(3)
    await backOnce(server, [life], [job])
  })

  test("G10 a namespace deleted while its Job is away is reported once, without a loop of creates", async () => {
    const server = await serve()
    server.model.put({ kind: "Namespace", metadata: { name: "going" } })
    const job = stand(server, "load-a", { namespace: "going" })
    server.model.put({
      kind: "ConfigMap",
      metadata: { name: "held", namespace: "going", finalizers: ["example.test/hold"] },
    })
    server.model.put({
      kind: "Job",
      metadata: { ...manifest("stuck").metadata, namespace: "going", finalizers: ["example.test/hold"] },
      spec: manifest("stuck").spec,
    })
    atStep(server, "create", job, () => server.model.request({ verb: "delete", resource: "namespaces", name: "going" }))
    const life = live(server, { NAMESPACE: "going" })
    const isOver = () =>
      life.factsOf("RestartFinished", "load-a").filter(({ outcome }) => outcome.result === "namespace gone").length
    await until("reported", isOver)
    const began = life.clock.now()
    await until("ten minutes", () => life.clock.now() - began > 600_000 || life.clock.go(1_000))
    expect([creations(server, "load-a").length, isOver()]).toEqual([1, 1])
  })

  test("G07 two operators, one watching and one polling, restart each Job once without a complaint", async () => {
    const server = await serve()
    const jobs = Array.from({ length: 20 }, (_, i) => stand(server, `load-${i}`))
    const lives = [live(server), live(server, { CHECK_INTERVAL: "1" }, { user: "old" })]
    await allBack(server, jobs)
    for (const life of lives) await afterLaterEvent(server, life)
    expect(jobs.map(({ metadata }) => server.uids.get(`default/${metadata.name}`)?.length)).toEqual(jobs.map(() => 2))
    for (const { metadata } of jobs)
      expect(deletions(server, metadata.name).filter(({ status }) => status === 200).length).toBe(1)
    expect(
      lives
        .flatMap(({ said }) => said)
        .filter(({ level, text }) => level === "error" || /held up|cannot begin/.test(text)),
    ).toEqual([])
  })

  test("G01 a very long delay is neither cut short nor forgotten", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { status: failedAgo(0) })
    const life = live(server, { RESTART_DELAY: "9999999" }, { rate: 1 })
    await until("scheduled", () => life.scheduled().length === 1)
    life.clock.jump(9_999_000_000)
    await afterLaterFailure(server, life)
    expect(creations(server, "load-a")).toEqual([])
    life.clock.jump(1_000_000)
    await backOnce(server, [life], [job])
  })

  test("G01 the system's clock sleeps longer than a timer can, and wakes at a signal", async () => {
    const stop = new AbortController()
    const sleeps = [2_147_483_648, 9_999_999_000].map((ms) => systemClock.sleep(ms, stop.signal).then(() => "long"))
    // A timer that overflowed would be due after 1 ms.
    expect(await Promise.race([...sleeps, systemClock.sleep(20).then(() => "short")])).toBe("short")
    stop.abort()
    expect(await Promise.all(sleeps)).toEqual(["long", "long"])
  })

  test("D09 reconnects, relists and replays report no fact twice", async () => {
    const server = await serve()
    stand(server, "waits", { status: failedAgo() })
    stand(server, "tick", { metadata: cronOwned(server) })
    stand(server, "runs", { status: {}, spec: { suspend: true } })
    const life = live(server, { RESTART_DELAY: "86400", JOB_NAMES: "waits,tick,runs,missing,later" })
    await until("watching", () => callsOf(server, "watch").length > 0 && life.about("waits", /restarted at/).length > 0)
    for (let round = 1; round <= 3; round++) {
      const watches = callsOf(server, "watch").length
      server.model.setStatus("jobs", "default", "waits", { ready: round })
      await restartServer(server, 5)
      await until(
        "watching again",
        () => callsOf(server, "watch").length > watches && callsOf(server, "watch").at(-1)?.status === 200,
      )
      life.clock.jump(31 * 60_000)
      stand(server, "later", { status: {}, spec: { suspend: true }, metadata: { labels: { round: `${round}` } } })
      await until("a later event", () => life.about("later", /suspended/).length === round)
    }
    const facts = life.said
      .map(({ text }) => text)
      .filter((text) => !/trying again|over after|default\/later/.test(text))
    expect(facts).toEqual([...new Set(facts)])
    for (const words of [
      /default\/waits\b.*failed at/,
      /default\/waits\b.*restarted at/,
      /default\/tick\b.*left alone.*CronJob cron/,
      /default\/missing\b.*no such Job/,
    ])
      expect(facts.filter((text) => words.test(text)).length).toBe(1)
    life.clock.jump(86_400_000)
    await until("back", () => server.uids.get("default/waits")?.length === 2)
  })

  test("G10 each Job that is named and missing is reported once", async () => {
    const server = await serve()
    const life = live(server, { JOB_NAMES: "load-a,load-b" })
    await until("reported", () => life.about("load-b", /no such Job/).length > 0)
    await restartServer(server, 5)
    await until("listed again", () => callsOf(server, "list", "jobs", ({ query }) => !query.labelSelector).length > 1)
    for (const name of ["load-a", "load-b"])
      expect(life.about(name, /no such Job/).map(({ level }) => level)).toEqual(["warning"])
  })

  test("G10 a Job that is named, and waits by its intent since its TTL took it, is not reported missing", async () => {
    const server = await serve()
    const job = stand(server, "load-a", { spec: { ttlSecondsAfterFinished: 300 } })
    standIntent(server, job, Date.now() + 3_600_000)
    removedByTtl(server, "load-a")
    await until("gone", () => server.model.job("default", "load-a") === undefined)
    const life = live(server, { JOB_NAMES: "load-a,load-b" })
    await until("the other is reported", () => life.factsOf("JobMissing", "load-b").length > 0)
    expect(life.factsOf("JobMissing", "load-a")).toEqual([])
  })

  test("G10 a namespace without Jobs is reported: it may not exist", async () => {
    const life = live(await serve(), { NAMESPACE: "btach-a" })
    const isReport = (text: string) => /namespace btach-a has no Jobs yet, or does not exist/.test(text)
    await until("reported", () => life.said.some(({ text }) => isReport(text)))
  })
})

describe("Stopping", () => {
  test("F10 a stop ends every wait: in a watch, a delay, a log, and for a server that is away or hangs", async () => {
    scaleLimits(1 / 1_000) // no limit of ours ends a wait, only the stop does
    const server = await serve()
    const away = await serve()
    await away.stop()
    stand(server, "load-a", { status: failedAgo(0) })
    server.addUser("hangs", OPERATOR_ROLE)
    const inLog = await serve()
    inLog.fault({ subresource: "log" }, { endlessBody: true })
    server.fault({ verb: "list", resource: "jobs", when: ({ user }) => user === "hangs" }, { hang: true }, { times: 9 })
    run(inLog, "load-a", [exits(3, "x\n")])
    const lives = [
      live(server, { RESTART_DELAY: "3600", JOB_NAMES: "no-such" }),
      live(server, { RESTART_DELAY: "3600" }),
      live(inLog),
      live(away),
      live(server, {}, { user: "hangs" }),
    ]
    await until(
      "all wait",
      () =>
        callsOf(server, "watch").length === 2 &&
        logs(inLog).length === 1 &&
        server.calls.some(({ user }) => user === "hangs"),
    )
    for (const life of lives) life.stop()
    await Promise.all(lives.map(({ done }) => done))
    expect([...callsOf(server, "delete"), ...callsOf(inLog, "delete")]).toEqual([])
  })

  test("F10 a stop while the old Job is terminating lets the new one be created first", async () => {
    const server = await serve()
    const job = stand(server, "load-a", HELD)
    const life = live(server)
    await until("terminating", () => current(server, job)?.metadata.deletionTimestamp)
    life.stop()
    release(server, "load-a")
    await life.done
    expect(isBack(server, job)).toBe(true)
  })

  test("F10 a second signal leaves the restart to the next life", async () => {
    const server = await serve()
    const job = stand(server, "load-a", HELD)
    const life = live(server)
    await until("terminating", () => current(server, job)?.metadata.deletionTimestamp)
    life.kill()
    await life.done
    release(server, "load-a")
    await until("gone", () => !current(server, job))
    expect(intents(server).length).toBe(1)
    live(server)
    await allBack(server, [job])
    expect(server.uids.get("default/load-a")?.length).toBe(2)
  })
})
