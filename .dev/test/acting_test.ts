// Chapter 6 of operator.ts at the hands of class Operator, against the embedded API server over real HTTPS. An id in a name is a report,
// listed in operator_test.ts. A fault is what the server does to one call; a step is one call of a restart.
import { describe, expect, test } from "bun:test"
import { INTENT, PREFIX, REPLACEMENT, systemClock, textRecord } from "../../operator.ts"
import type { Policy, Webhook } from "../apiserver/admission.ts"
import type { Action, Call } from "../apiserver/http.ts"
import type { Job, Obj, Pod } from "../apiserver/model.ts"
import { OPERATOR_ROLE } from "../apiserver/roles.ts"
import {
  afterLaterEvent,
  afterLaterFailure,
  allBack,
  atStep,
  attempt,
  backOnce,
  bodyName,
  callsOf,
  content,
  creations,
  cronOwned,
  current,
  deletions,
  ended,
  expectOnce,
  FAULTS,
  failure,
  HELD,
  instant,
  intentions,
  intents,
  isBack,
  isDryRun,
  kubectlDelete,
  type Life,
  live,
  logs,
  manifest,
  person,
  proofs,
  release,
  removedByTtl,
  restart,
  run,
  type Server,
  scaleLimits,
  serve,
  stand,
  standAt,
  standPod,
  steps,
  tidyUp,
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
        atStep(server, step, job, () => restart(server, 60))
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

  test("killed while the old Job is terminating, the next life restarts it under the old Role, whatever its selection is", async () => {
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

const outcomesOf = (life: Life, name: string) =>
  life.factsOf("RestartFinished", name).map(({ outcome }) => outcome.result)
/** Until the operator has deleted the Job and looked at it twice since: from then on, it relies on its intent. */
const terminating = (server: Server, { metadata: { name } }: Job) =>
  until("terminating", () => {
    const deletedAt = server.calls.findIndex(
      (call) => call.verb === "delete" && call.name === name && call.status === 200,
    )
    const looks = server.calls
      .slice(deletedAt)
      .filter((call) => call.verb === "get" && call.name === name && call.status > 0)
    return deletedAt >= 0 && looks.length >= 2
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

  test("A04 a POST answered with AlreadyExists while the old Job is being deleted is tried again until it works", async () => {
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
      deletionTimestamp: instant(Date.now()),
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
    const server = await serve({ gcMs: 80 })
    const life = live(server, { RESTART_DELAY: "60" }, { rate: 100 })
    await until("watching", () => server.calls.filter(({ verb }) => verb === "watch").length === 2)
    const job = run(server, "load-a", [attempt(3, "last words\n"), {}], { spec: { ttlSecondsAfterFinished: 0 } })
    await until("gone", () => !current(server, job))
    await allBack(server, [job])
    expectOnce(server, [life], [job])
    expect(life.about("load-a", /failed at.*exit:3/).length).toBe(1)
    expect([life.evidence("load-a"), logs(server).length]).toEqual([expect.stringContaining("| last words"), 1])
    const failedAt = Date.parse(/failed at (\S+Z)/.exec(life.about("load-a", /failed at/)[0]!.text)?.[1] ?? "")
    expect(life.clock.at(creations(server, "load-a")[0]!.at)).toBeGreaterThanOrEqual(failedAt + 60_000)
  })

  test("A12 a Job that a person creates again after its TTL took it follows its own due time", async () => {
    const server = await serve({ gcMs: 80 })
    const life = live(server, { RESTART_DELAY: "7200" }, { rate: 100 })
    await until("watching", () => server.calls.filter(({ verb }) => verb === "watch").length === 2)
    run(server, "load-a", [attempt(3), {}], { spec: { ttlSecondsAfterFinished: 0 } })
    await until("it waits", () => life.factsOf("IntentWritten").length === 1)
    const again = run(server, "load-a", [{}, attempt(3), {}], {
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
    await until("said", () => life.about("load-a", /restarted|someone|another/).length > 0)
    expect([
      current(server, job)?.metadata.annotations,
      creations(server, "load-a").map(({ status }) => status),
    ]).toEqual([theirs.annotations, [409]])
    expect(deletions(server, "load-a").length).toBe(1)
    expect(life.about("load-a", /someone else|another/).length).toBe(1)
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

  test("G07 two operators at once, one watching and one polling, restart each Job once without a complaint", async () => {
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
    const job = stand(server, "load-a", { status: failure(0) })
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
    stand(server, "waits", { status: failure() })
    stand(server, "tick", { metadata: cronOwned(server) })
    stand(server, "runs", { status: {}, spec: { suspend: true } })
    const life = live(server, { RESTART_DELAY: "86400", JOB_NAMES: "waits,tick,runs,missing,later" })
    await until("watching", () => callsOf(server, "watch").length > 0 && life.about("waits", /restarted at/).length > 0)
    for (let round = 1; round <= 3; round++) {
      const watches = callsOf(server, "watch").length
      server.model.setStatus("jobs", "default", "waits", { ready: round })
      await restart(server, 5)
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
    await restart(server, 5)
    await until("listed again", () => callsOf(server, "list", "jobs", ({ query }) => !query.labelSelector).length > 1)
    for (const name of ["load-a", "load-b"])
      expect(life.about(name, /no such Job/).map(({ level }) => level)).toEqual(["warning"])
  })

  test("G10 a namespace that does not exist is reported as such where the Role may look", async () => {
    const server = await serve()
    const getsNamespaces = { verbs: ["get"], apiGroups: [""], resources: ["namespaces"] }
    server.addUser("sees-namespaces", [...OPERATOR_ROLE, getsNamespaces])
    const lives = ["operator", "sees-namespaces"].map((user) => live(server, { NAMESPACE: "btach-a" }, { user }))
    await until("reported", () => lives.every(({ said }) => said.some(({ text }) => /namespace btach-a/.test(text))))
    expect(lives.map(({ said }) => said.filter(({ text }) => /does not exist/.test(text)).length)).toEqual([0, 1])
  })
})

describe("The restart protocol", () => {
  /** A policy that rejects a Job by its name, and not its intent; returns what lifts it. */
  function forbid(server: Server, name: string): () => void {
    const { policies } = server.model.admission
    const policy: Policy = {
      name: "teams",
      deny: ({ object }) => (object.metadata.name === name ? "team a may not create it" : undefined),
    }
    policies.push(policy)
    return () => void policies.splice(policies.indexOf(policy), 1)
  }
  const DENIED =
    "ValidatingAdmissionPolicy 'teams' with binding 'teams-binding' denied request: team a may not create it"
  const rejected = (life: Life, name: string, times = 1) =>
    until(`${name} rejected`, () => life.factsOf("RestartRejected", name).length >= times)
  test("a Job that the cluster would not take back stands, and its intent is removed", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    forbid(server, "load-a")
    const life = live(server)
    await rejected(life, "load-a")
    expect(current(server, job)?.metadata.uid).toBe(job.metadata.uid)
    expect([deletions(server, "load-a"), intents(server)]).toEqual([[], []])
  })

  test("a rejection is reported in the server's words", async () => {
    const server = await serve()
    stand(server, "load-a")
    forbid(server, "load-a")
    const life = live(server)
    await rejected(life, "load-a")
    expect(life.factsOf("RestartRejected", "load-a")[0]?.why).toContain(DENIED)
    await until("an Event", () =>
      callsOf(server, "create", "events").some(({ body }) => JSON.stringify(body).includes(DENIED)),
    )
  })

  test("after a rejection the cluster is asked before an intent is written again, and the restart goes on by itself", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const lift = forbid(server, "load-a")
    const life = live(server)
    await rejected(life, "load-a", 3)
    expect([intentions(server, "load-a").length, proofs(server, "load-a").length]).toEqual([1, 3])
    lift()
    await backOnce(server, [life], [job])
  })

  test("a restart whose intent is rejected deletes nothing", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const isIntent = ({ body }: Call) => JSON.stringify(body).includes(REPLACEMENT)
    server.fault(
      { verb: "create", resource: "jobs", when: isIntent },
      { status: 403, message: "no intents" },
      { times: 2 },
    )
    const life = live(server)
    await rejected(life, "load-a")
    expect([deletions(server, "load-a"), current(server, job)?.metadata.uid]).toEqual([[], job.metadata.uid])
    await backOnce(server, [life], [job])
  })

  const wanted: Record<string, (object: Obj) => unknown> = {
    "a label": ({ metadata }) => metadata.labels?.team,
    "an annotation": ({ metadata }) => metadata.annotations?.note,
    "a field of the spec": ({ spec }) => (spec as Job["spec"]).activeDeadlineSeconds,
  }
  test.each(Object.entries(wanted))(
    "a policy that wants %s on every Job does not keep it from its restart",
    async (_, has) => {
      const server = await serve()
      const labels = { app: "load-a", team: "blue" }
      const job = stand(server, "load-a", { metadata: { labels }, spec: { activeDeadlineSeconds: 60 } })
      const deny: Policy["deny"] = ({ object }) => (has(object) ? undefined : "it is missing")
      server.model.admission.policies.push({ name: "wants", deny })
      await backOnce(server, [live(server)], [job])
      expect(intentions(server, "load-a").map(({ status }) => status)).toEqual([422, 201])
    },
  )

  const changes: Record<string, [(metadata: Obj["metadata"]) => void, RegExp]> = {
    "drops an annotation": [
      ({ annotations }) => delete annotations?.[REPLACEMENT],
      /annotation .*replacement was removed/,
    ],
    "adds an owner": [
      (metadata) =>
        Object.assign(metadata, { ownerReferences: [{ apiVersion: "v1", kind: "ConfigMap", name: "c", uid: "U5" }] }),
      /owner ConfigMap c/,
    ],
    "adds a finalizer": [(metadata) => Object.assign(metadata, { finalizers: ["a.test/b"] }), /finalizer a.test\/b/],
  }
  test.each(Object.entries(changes))(
    "a webhook that %s of the intent is named, and nothing is deleted",
    async (_, [change, why]) => {
      const server = await serve()
      const job = stand(server, "load-a")
      const mutate: Webhook["mutate"] = ({ object }) => {
        const copy = structuredClone(object)
        if (copy.metadata.name.includes("-restart-")) change(copy.metadata)
        return copy
      }
      server.model.admission.webhooks.push({ name: "x.test", mutate })
      const life = live(server)
      await rejected(life, "load-a")
      expect(life.factsOf("RestartRejected", "load-a")[0]?.why).toMatch(why)
      expect([deletions(server, "load-a"), current(server, job)?.metadata.uid]).toEqual([[], job.metadata.uid])
    },
  )

  test("a webhook that answers 409 AlreadyExists itself is no yes", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const denial = { code: 409, reason: "AlreadyExists", message: 'jobs.batch "load-a" already exists' }
    const deny: Webhook["deny"] = ({ object }) => (object.metadata.name === "load-a" ? denial : undefined)
    server.model.admission.webhooks.push({ name: "x.test", deny })
    const life = live(server)
    await rejected(life, "load-a")
    expect([deletions(server, "load-a"), current(server, job)?.metadata.uid]).toEqual([[], job.metadata.uid])
  })

  test("a webhook that is down holds the delete up, and nothing is deleted without an answer", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const webhook: Webhook = { name: "x.test", isDown: true }
    server.model.admission.webhooks.push(webhook)
    const life = live(server)
    await until("retried", () => life.factsOf("Retrying", "load-a").length > 0)
    expect(deletions(server, "load-a")).toEqual([])
    webhook.isDown = false
    await backOnce(server, [life], [job])
  })

  test("a TTL that ends before the Job is due keeps its wait: one intent when it fails, one restart when it is due", async () => {
    const server = await serve()
    const life = live(server, { RESTART_DELAY: "600" }, { rate: 1 })
    await until("watching", () => callsOf(server, "watch").length > 0)
    const job = run(server, "load-a", [attempt(3), {}], { spec: { ttlSecondsAfterFinished: 1 } })
    await until("an intent", () => intents(server).length === 1)
    await until("its TTL has removed it", () => !current(server, job))
    await afterLaterFailure(server, life)
    expect([creations(server, "load-a"), intentions(server, "load-a").length]).toEqual([[], 1])
    life.clock.jump(600_000)
    await allBack(server, [job])
    await until("reported", () => outcomesOf(life, "load-a").length > 0)
    expect([server.uids.get("default/load-a")?.length, outcomesOf(life, "load-a")]).toEqual([2, ["restarted"]])
  })

  test("a TTL that ends while the cluster rejects the Job keeps its intent, from which it is created later", async () => {
    const server = await serve()
    const job = run(server, "load-a", [attempt(3), {}], { spec: { ttlSecondsAfterFinished: 1 } })
    const lift = forbid(server, "load-a")
    const life = live(server, {}, { rate: 1 })
    await rejected(life, "load-a")
    await until("its TTL has removed it", () => !current(server, job))
    expect(intents(server).length).toBe(1)
    life.clock.jump(60_000)
    await until("a try", () => creations(server, "load-a").length > 0)
    lift()
    life.clock.jump(60_000)
    await allBack(server, [job])
    expect(server.uids.get("default/load-a")?.length).toBe(2)
  })

  test.each(["Background", "Foreground"])(
    "a person's %s delete cancels a restart that waits, though its TTL threatens it",
    async (policy) => {
      const server = await serve()
      const job = stand(server, "load-a", { spec: { ttlSecondsAfterFinished: 60 }, status: failure(0) })
      const life = live(server, { RESTART_DELAY: "600" }, { rate: 1 })
      await until("an intent", () => intents(server).length === 1)
      person(server, "delete", "load-a", { propagationPolicy: policy })
      await until("no intent", () => !current(server, job) && intents(server).length === 0)
      life.clock.jump(3_600_000)
      await afterLaterFailure(server, life)
      expect([creations(server, "load-a"), outcomesOf(life, "load-a")]).toEqual([[], ["cancelled"]])
    },
  )

  test("a Retry-After of days holds the create up for five minutes", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const isCreate = (call: Call) => bodyName(call) === "load-a" && !isDryRun(call)
    const action = { status: 503, retryAfterSeconds: 999_999 }
    server.fault({ verb: "create", resource: "jobs", when: isCreate }, action, { times: 1 })
    const life = live(server, {}, { rate: 1 })
    await until("held up", () => life.factsOf("Retrying", "load-a").length > 0)
    expect(life.factsOf("Retrying", "load-a")[0]?.retryMs).toBeWithin(300_000, 301_000)
    life.clock.jump(301_000)
    await backOnce(server, [life], [job])
  })

  test("a Retry-After beside a yes is not waited for", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    const action = {
      status: 409,
      reason: "AlreadyExists",
      message: 'jobs.batch "load-a" already exists',
      retryAfterSeconds: 300,
    }
    server.fault({ verb: "create", resource: "jobs", when: isDryRun }, action, { times: 1 })
    const life = live(server, {}, { rate: 1 })
    await backOnce(server, [life], [job])
    expect(life.factsOf("Retrying")).toEqual([])
  })

  test("J04 what holds a restart up is named after a minute, and is an alarm after five and each hour", async () => {
    const server = await serve()
    const job = stand(server, "held", HELD)
    const metadata = { finalizers: ["example.test/pod"] }
    standPod(server, job, "q1", { phase: "Failed", containerStatuses: [ended("main", 3)] }, metadata)
    const life = live(server, {}, { rate: 1 })
    await terminating(server, job)
    const passes = async (ms: number, facts: number) => {
      life.clock.jump(ms)
      await until(`${facts} facts`, () => life.factsOf("HeldUp", "held").length === facts)
    }
    await passes(61_000, 1)
    await passes(240_000, 2)
    await passes(3_601_000, 3)
    const heldUp = life.factsOf("HeldUp", "held")
    expect(heldUp.map(({ isAlarm }) => isAlarm)).toEqual([false, true, true])
    for (const { blockers } of heldUp)
      expect(blockers).toMatch(
        /finalizers .*example.test\/hold.*; pod q1 \(Failed, node node, finalizers example.test\/pod\)/,
      )
    release(server, "held")
    person(server, "patch", "q1", { metadata: { finalizers: null } }, "pods")
    await backOnce(server, [life], [job])
  })

  test("E1 a Job that nothing but the garbage collector's finalizer holds for a minute is deleted in the background", async () => {
    const server = await serve()
    const job = stand(server, "load-a")
    server.model.admission.policies.push({ name: "frozen", operations: ["UPDATE"], deny: () => "no updates" })
    const life = live(server)
    await terminating(server, job)
    await backOnce(server, [life], [job])
    const policies = deletions(server, "load-a").map(
      ({ body }) => (body as { propagationPolicy: string }).propagationPolicy,
    )
    expect(policies).toEqual(["Foreground", "Background"])
  })

  test("an intent that was made unreadable while it is relied on still completes", async () => {
    const server = await serve()
    const job = stand(server, "held", HELD)
    const life = live(server)
    await terminating(server, job)
    const [intent] = intents(server)
    person(server, "patch", intent!.metadata.name, {
      metadata: { annotations: { [REPLACEMENT]: "broken" }, labels: null },
    })
    release(server, "held")
    await backOnce(server, [life], [job])
  })

  test("H25 an intent that somebody resumes and scales runs nothing, and the Job comes back once", async () => {
    const server = await serve()
    const owners: string[] = []
    server.model.watch({ resource: "pods" }, ({ type, object }) => {
      if (type === "ADDED") owners.push(object.metadata.ownerReferences?.[0]?.name ?? "")
    })
    const job = stand(server, "held", HELD)
    const life = live(server)
    await terminating(server, job)
    person(server, "patch", intents(server)[0]!.metadata.name, { spec: { suspend: false, parallelism: 3 } })
    release(server, "held")
    await backOnce(server, [life], [job])
    await until("it runs", () => owners.length > 0)
    expect(owners).toEqual(["held"])
  })

  test("H23 an intent has no label and no annotation by which others prune", async () => {
    const server = await serve()
    const applied = { "kubectl.kubernetes.io/last-applied-configuration": "{}", "argocd.argoproj.io/tracking-id": "a" }
    const job = stand(server, "held", { metadata: { ...HELD.metadata, annotations: applied } })
    live(server)
    await terminating(server, job)
    const { labels = {}, annotations = {} } = intents(server)[0]!.metadata
    expect(Object.keys({ ...labels, ...annotations }).filter((key) => !key.startsWith(PREFIX))).toEqual([])
  })

  test("B6 an edit of the terminating Job that the cluster rejects is reported, and the new Job lacks it", async () => {
    const server = await serve()
    const job = stand(server, "held", HELD)
    const deny: Policy["deny"] = ({ object }) => (object.metadata.labels?.app === "bad" ? "no bad Jobs" : undefined)
    server.model.admission.policies.push({ name: "bad", deny })
    const life = live(server)
    await terminating(server, job)
    person(server, "patch", "held", { metadata: { labels: { app: "bad" } } })
    await until("reported", () => life.factsOf("EditRejected", "held").length > 0)
    expect(life.factsOf("EditRejected", "held")[0]?.why).toContain("no bad Jobs")
    release(server, "held")
    await backOnce(server, [life], [job])
  })

  test("an intent of version 1.0.0 is completed", async () => {
    const server = await serve()
    const { uid } = stand(server, "load-a").metadata
    kubectlDelete(server, "load-a")
    const hidden = {
      name: "load-a",
      uid,
      resourceVersion: "1",
      metadata: { labels: { app: "x" } },
      spec: {},
      memory: {},
    }
    const annotations = { note: "1", [INTENT]: JSON.stringify(hidden) }
    const metadata = { labels: { app: "x", [INTENT]: "load-a" }, annotations }
    stand(server, "load-a-restart-0123456789ab", { metadata, spec: { suspend: true }, status: {} })
    const life = live(server)
    await until("restarted", () => outcomesOf(life, "load-a").length > 0)
    const back = server.model.job("default", "load-a")
    expect([outcomesOf(life, "load-a"), intents(server)]).toEqual([["replaced"], []])
    expect(back?.metadata).toMatchObject({ labels: { app: "x" }, annotations: { note: "1" } })
  })

  const spent: Record<string, [user: string, most: string[]]> = {
    "eight calls, none of them a LIST, where pods are watched": [
      "operator",
      ["get", "create intent", "create dry run", "delete", "get", "get intent", "create", "delete intent"],
    ],
    "one LIST of pods more with the old Role": [
      "old",
      ["get", "create intent", "create dry run", "delete", "get", "list pods", "get intent", "create", "delete intent"],
    ],
  }
  test.each(Object.entries(spent))("a restart costs %s", async (_, [user, most]) => {
    const server = await serve()
    const life = live(server, { CHECK_INTERVAL: "3600" }, { user })
    await until("listed", () => callsOf(server, user === "old" ? "list" : "watch").length > 0)
    const job = run(server, "load-a", [attempt(3), {}])
    await until("failed", () => current(server, job)?.status?.failed)
    life.clock.jump(user === "old" ? 3_600_000 : 0)
    await backOnce(server, [life], [job])
    const kindOf = (call: Call) => {
      const name = call.name ?? bodyName(call)
      const what = name.includes("-restart-")
        ? "intent"
        : isDryRun(call)
          ? "dry run"
          : call.resource === "pods"
            ? "pods"
            : ""
      return `${call.verb} ${what}`.trim()
    }
    const ofRestart = server.calls.filter(
      (call) =>
        (/^load-a/.test(call.name ?? bodyName(call)) &&
          ["jobs", "pods"].includes(call.resource) &&
          !call.subresource) ||
        call.query.labelSelector?.includes(job.metadata.uid),
    )
    const seen = ofRestart.map(kindOf).filter((kind) => kind !== "list" && kind !== "watch")
    expect(most).toEqual(expect.arrayContaining(seen))
    expect(seen.length).toBeLessThanOrEqual(most.length)
  })
})

describe("The evidence", () => {
  /** Fails with restartPolicy OnFailure: no pod is left then. */
  const failsWithoutPods = (server: Server) =>
    run(server, "load-a", [attempt(3, "one\n"), attempt(3, "two\n"), {}], {
      pod: { restartPolicy: "OnFailure" },
      spec: { backoffLimit: 1 },
    })
  test("B01 a watch has kept exit code and log of pods that are gone when the Job fails", async () => {
    const server = await serve()
    const life = live(server, { DRY_RUN: "true" })
    await until("watching", () => callsOf(server, "watch", "pods").length + callsOf(server, "watch").length === 2)
    failsWithoutPods(server)
    await until("reported", () => life.about("load-a", /failed at.*exit:3, BackoffLimitExceeded/).length > 0)
    expect(server.model.pods()).toEqual([])
    expect(life.evidence("load-a")).toMatch(/exit code 3[\s\S]*\| (one|two)/)
  })
  test("B01 where pods are polled and gone, the failure is reported as the Job tells it", async () => {
    const server = await serve()
    failsWithoutPods(server)
    const failed = () => server.model.job("default", "load-a")?.status.conditions?.some(({ type }) => type === "Failed")
    await until("failed", failed)
    const life = live(server, { DRY_RUN: "true", CHECK_INTERVAL: "3" }, { user: "old" })
    await until("reported", () => life.about("load-a", /failed at.*BackoffLimitExceeded, Job has reached/).length > 0)
    expect(life.evidence("load-a")).toBe("no pods left")
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

  test("B09 a deadline is the cause, whether the Job or the pod tells it", async () => {
    const server = await serve()
    const jobs = [
      stand(server, "by-job", { status: failure(5_000, { reason: "DeadlineExceeded" }) }),
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
    server.model.setStatus("jobs", "default", "load-a", failure(0, { reason: "DeadlineExceeded" }))
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
    expect(asked["p-again"]?.map(({ query }) => query.previous)).toEqual(["true", undefined])
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
    const job = run(server, "load-a", [attempt(3), {}])
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
    const message = `Job.batch "load-a" is invalid: env[0]: Invalid value: core.EnvVar{Name:"API_KEY", Value:"s3cr3t-demo"}`
    server.fault({ verb: "create", resource: "jobs" }, { status: 422, message }, { times: 2 })
    server.fault(
      { verb: "create", resource: "jobs" },
      { status: 500, message: "Authorization: Bearer t0ken-t0ken" },
      { times: 1 },
    )
    const life = live(server, {}, { user: "secretive", rate: 400 })
    await allBack(server, [job])
    const text = life.said.map(({ level, text, lines }) => textRecord(0, level, text, lines)).join("")
    expect(text).toMatch(/Job.batch/)
    expect(text).not.toMatch(/s3cr3t-demo|t0ken-t0ken|last-applied/)
  })
})

describe("Stopping", () => {
  test("F10 a stop ends every wait: in a watch, a delay, a log, and for a server that is away or hangs", async () => {
    scaleLimits(1 / 1_000) // no limit of ours ends a wait, only the stop does
    const server = await serve()
    const away = await serve()
    await away.stop()
    stand(server, "load-a", { status: failure(0) })
    server.addUser("hangs", OPERATOR_ROLE)
    const inLog = await serve()
    inLog.fault({ subresource: "log" }, { endlessBody: true })
    server.fault({ verb: "list", resource: "jobs", when: ({ user }) => user === "hangs" }, { hang: true }, { times: 9 })
    run(inLog, "load-a", [attempt(3, "x\n")])
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
