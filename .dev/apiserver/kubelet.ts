// The node: a kubelet that plays the scripts of pods, and serves their logs.
import { badRequest, StatusError, statusError } from "./requests.ts"
import { type Change, type Container, type ContainerStatus, hasEnded, keyOf, type Pod, timestamp } from "./resources.ts"
import type { Store } from "./store.ts"

/** One attempt of a pod, or of a container restarted in place. Without runMs a container runs for ever. */
export interface Attempt {
  runMs?: number
  containers?: Record<string, { exitCode?: number; reason?: string; log?: string; runMs?: number; logLost?: boolean }>
  evicted?: boolean
  imagePull?: string
  /** From SIGTERM to the end of the containers; never longer than the grace period. */
  graceMs?: number
}
/** The annotation of a pod with its attempts, as JSON. The last one is repeated. */
export const SCRIPT = "test/script"

/** A container as its kubelet knows it. */
interface Running {
  name: string
  init: boolean
  status: ContainerStatus
  log?: string
  previousLog?: string
  lost?: boolean | undefined
}
interface Run {
  attempt: Attempt
  containers: Running[]
  evicted?: boolean
  killed?: boolean
}

export class Kubelet {
  private readonly runs = new Map<string, Run>()
  private readonly attempts = new Map<string, number>()
  /** Pods of another node, about which this one does nothing. */
  private readonly foreign = new Set<string>()
  private isUp = true
  private parked: (() => void)[] = []

  /** A script's attempts are counted by the Job's name, across restarts, or by its uid. */
  constructor(
    private readonly store: Store,
    private readonly attemptsPer: "name" | "uid" = "name",
  ) {
    store.listeners.push((change) => this.onChange(change))
  }
  private onChange({ type, object, resource, prev }: Change): void {
    if (resource !== "pods") return
    const pod = object as Pod
    const { uid, deletionGracePeriodSeconds: grace, finalizers } = pod.metadata
    if (type === "DELETED") this.runs.delete(uid)
    else if (type === "ADDED") this.start(pod)
    const isMarked = type === "MODIFIED" && grace !== prev?.metadata.deletionGracePeriodSeconds
    const isRemovedAtOnce = grace === 0 && !finalizers?.length
    if (isMarked && !isRemovedAtOnce && !hasEnded(pod)) this.stop(pod)
  }
  /** A node that is down starts, ends and removes nothing until it is back. */
  setUp(isUp: boolean): void {
    this.isUp = isUp
    if (isUp) for (const step of this.parked.splice(0)) step()
  }
  /** This pod is none of this node's. */
  ignore(uid: string): void {
    this.foreign.add(uid)
  }
  /** The containers of a pod are gone with their logs: the log endpoint answers 200 with an error sentence. */
  loseLogs(uid: string): void {
    for (const container of this.runs.get(uid)?.containers ?? []) container.lost = true
  }

  private onNode(uid: string, ms: number, step: (pod: Pod, run: Run) => void): void {
    const act = () => {
      const pod = this.store.byUid.get(uid) as Pod | undefined
      const run = this.runs.get(uid)
      if (!pod || !run) return
      if (this.isUp) step(pod, run)
      else this.parked.push(act)
    }
    this.store.after(ms, act)
  }
  private nextAttempt(pod: Pod): Attempt {
    const script = JSON.parse(pod.metadata.annotations?.[SCRIPT] ?? "[]") as Attempt[]
    const owner = pod.metadata.ownerReferences?.[0]
    const ownerKey = this.attemptsPer === "uid" ? owner?.uid : `${pod.metadata.namespace}/${owner?.name}`
    const by = owner ? ownerKey! : pod.metadata.uid
    const n = this.attempts.get(by) ?? 0
    this.attempts.set(by, n + 1)
    return script[Math.min(n, script.length - 1)] ?? {}
  }
  private start(pod: Pod): void {
    const { uid } = pod.metadata
    if (this.foreign.delete(uid)) return
    const { startMs } = this.store.timing
    const { initContainers = [], containers } = pod.spec
    const reason = initContainers.length ? "PodInitializing" : "ContainerCreating"
    this.runs.set(uid, {
      attempt: {},
      containers: [
        ...initContainers.map((c) => idleContainer(c, true, reason)),
        ...containers.map((c) => idleContainer(c, false, reason)),
      ],
    })
    // No node takes a gated pod: it stays as it is.
    if (pod.spec.schedulingGates?.length) return
    this.onNode(uid, startMs / 10, (p, run) => {
      this.store.write("pods", { ...p, spec: { ...p.spec, nodeName: "node" } }, p)
      this.publish(uid, run)
    })
    this.onNode(uid, startMs, (p, run) => {
      if (!p.metadata.deletionTimestamp) this.startAttempt(p, run)
    })
  }
  private startAttempt(pod: Pod, run: Run): void {
    const { uid } = pod.metadata
    run.attempt = this.nextAttempt(pod)
    const { imagePull, evicted, runMs } = run.attempt
    if (imagePull) {
      for (const c of run.containers) c.status = { ...c.status, state: { waiting: { reason: imagePull } } }
      return this.publish(uid, run)
    }
    if (evicted) this.onNode(uid, runMs ?? 0, (_, r) => this.evict(uid, r))
    this.startNext(uid, run)
  }
  /** Init containers start one after another, then all others at once. */
  private startNext(uid: string, run: Run): void {
    const init = run.containers.find((c) => c.init && c.status.state?.terminated?.exitCode !== 0)
    if (init) this.startContainer(uid, run, init)
    else for (const c of run.containers) if (!c.init) this.startContainer(uid, run, c)
    this.publish(uid, run)
  }
  private startContainer(uid: string, run: Run, c: Running): void {
    const script = run.attempt.containers?.[c.name] ?? {}
    const containerID = `containerd://${(this.store.newUid() + this.store.newUid()).replaceAll("-", "")}`
    const startedAt = timestamp(this.store.now())
    c.status = {
      ...c.status,
      state: { running: { startedAt } },
      ready: !c.init,
      started: true,
      containerID,
      imageID: "sha256:0",
    }
    c.log = script.log ?? ""
    c.lost = script.logLost
    const runMs = script.runMs ?? (c.init ? 0 : run.attempt.runMs)
    if (runMs !== undefined && !run.attempt.evicted)
      this.onNode(uid, runMs, (pod, r) => {
        if (c.status.containerID !== containerID || !c.status.state?.running) return
        this.endContainer(c, script.exitCode ?? 0, script.reason)
        this.proceed(pod, r, c)
      })
  }
  private endContainer(c: Running, exitCode: number, reason = exitCode ? "Error" : "Completed"): void {
    const startedAt = c.status.state?.running?.startedAt
    const { containerID } = c.status
    const terminated = {
      exitCode,
      reason,
      ...(startedAt && { startedAt }),
      finishedAt: timestamp(this.store.now()),
      ...(containerID && { containerID }),
    }
    c.status = { ...c.status, state: { terminated }, ready: c.init && exitCode === 0, started: false }
  }
  private proceed(pod: Pod, run: Run, c: Running): void {
    const { uid, deletionTimestamp } = pod.metadata
    const failed = c.status.state?.terminated?.exitCode !== 0
    if (c.init && !failed) return this.startNext(uid, run)
    this.publish(uid, run)
    if (!failed || pod.spec.restartPolicy !== "OnFailure" || deletionTimestamp) return
    // The first restart comes at once, the next ones after a growing delay.
    const n = c.status.restartCount
    const delayMs = n === 0 ? 0 : this.store.timing.backoffMs * Math.min(2 ** (n - 1), 30)
    const restart = () => {
      if (run.killed || run.evicted) return
      run.attempt = this.nextAttempt(pod)
      const { state } = c.status
      c.status = {
        ...c.status,
        restartCount: n + 1,
        lastState: c.status.lastState?.terminated && !state?.terminated ? c.status.lastState : state!,
      }
      c.previousLog = c.log ?? ""
      this.startContainer(uid, run, c)
      this.publish(uid, run)
    }
    if (n > 0)
      this.onNode(uid, this.store.timing.backoffMs / 10, () => {
        if (run.killed || run.evicted) return
        const { name, namespace } = pod.metadata
        const podId = `${name}_${namespace}(${uid})`
        const message = `back-off ${delayMs / 1000}s restarting failed container=${c.name} pod=${podId}`
        const waiting = { reason: "CrashLoopBackOff", message }
        c.status = { ...c.status, lastState: c.status.state!, state: { waiting } }
        this.publish(uid, run)
      })
    this.onNode(uid, delayMs, restart)
  }
  private evict(uid: string, run: Run): void {
    run.evicted = true
    for (const c of run.containers) if (c.status.state?.running) this.endContainer(c, 137)
    this.publish(uid, run)
  }
  private stop(pod: Pod): void {
    const { uid, deletionGracePeriodSeconds = 30 } = pod.metadata
    const run = this.runs.get(uid)
    const running = run?.containers.some((c) => c.status.state?.running)
    const wantedMs = running ? (run?.attempt.graceMs ?? this.store.timing.deletionDelayMs) : 0
    this.onNode(uid, Math.min(wantedMs, deletionGracePeriodSeconds * 1000), (p, r) => {
      if (!hasEnded(p)) {
        r.killed = true
        for (const c of r.containers) if (c.status.state?.running) this.endContainer(c, 137)
        this.publish(uid, r)
      }
      this.onNode(uid, this.store.timing.removeMs, (last) => {
        const gone = { ...last, metadata: { ...last.metadata, deletionGracePeriodSeconds: 0 } }
        const marked = last.metadata.deletionGracePeriodSeconds ? this.store.write("pods", gone, last) : last
        if (!marked.metadata.finalizers?.length) this.store.remove("pods", marked)
      })
    })
  }
  /** Writes what the kubelet knows into the pod's status. */
  private publish(uid: string, run: Run): void {
    const pod = this.store.byUid.get(uid) as Pod
    const now = timestamp(this.store.now())
    const init = run.containers.filter((c) => c.init)
    const main = run.containers.filter((c) => !c.init)
    const phase = phaseOf(pod, run)
    const conditions = conditionsOf(run, phase).map(([type, isTrue, reason]) => {
      const status = isTrue ? "True" : "False"
      const before = pod.status.conditions?.find((c) => c.type === type && c.status === status)
      return { type, status, lastTransitionTime: before?.lastTransitionTime ?? now, ...(reason && { reason }) }
    })
    const status = {
      ...pod.status,
      phase,
      conditions,
      startTime: pod.status.startTime ?? now,
      ...(run.evicted && { reason: "Evicted", message: "The node was low on resource: memory." }),
      ...(init.length && { initContainerStatuses: init.map((c) => c.status) }),
      containerStatuses: main.map((c) => c.status),
    }
    this.store.write("pods", { ...pod, status }, pod)
  }

  /** What the log endpoint answers. */
  log(pod: Pod, query: Record<string, string>): string {
    for (const n of [query.tailLines, query.limitBytes])
      if (n && !/^-?\d+$/.test(n)) throw badRequest(`strconv.ParseInt: parsing "${n}": invalid syntax`)
    const wanted = containerToRead(pod, query.container)
    if (!pod.spec.nodeName) throw new StatusError({ status: 204, body: "" })
    const path = `https://node:10250/containerLogs/${keyOf(pod)}/${wanted}`
    if (!this.isUp) throw statusError(500, undefined, `Get "${path}": dial tcp: connect: connection refused`)
    const c = this.runs.get(pod.metadata.uid)?.containers.find((r) => r.name === wanted)
    const isPrevious = query.previous === "true"
    const text = isPrevious ? c?.previousLog : c?.log
    if (text === undefined) throw badRequest(noLogMessage(pod, wanted, isPrevious, c))
    return c?.lost ? `unable to retrieve container logs for ${c.status.containerID}` : endOfLog(text, query)
  }
}

function idleContainer({ name, image }: Container, init: boolean, reason: string): Running {
  const state = { waiting: { reason } }
  const rest = { lastState: {}, ready: false, restartCount: 0, image: image ?? "", imageID: "", started: false }
  return { name, init, status: { name, state, ...rest } }
}
const exitCodeOf = (c: Running) => c.status.state?.terminated?.exitCode
function phaseOf(pod: Pod, run: Run): string {
  const main = run.containers.filter((c) => !c.init)
  const isOver = run.killed || run.evicted || pod.spec.restartPolicy !== "OnFailure"
  const hasInitFailed = isOver && run.containers.some((c) => c.init && (exitCodeOf(c) ?? 0) !== 0)
  const haveAllEnded = main.every((c) => c.status.state?.terminated)
  const isFailing = main.some((c) => exitCodeOf(c) !== 0)
  if (run.evicted || run.killed || hasInitFailed || (haveAllEnded && isFailing && isOver)) return "Failed"
  if (haveAllEnded && !isFailing) return "Succeeded"
  return main.some((c) => !c.status.state?.waiting || c.status.restartCount > 0) ? "Running" : "Pending"
}
function conditionsOf(run: Run, phase: string): [type: string, isTrue: boolean, reason?: string | undefined][] {
  const init = run.containers.filter((c) => c.init)
  const isInitialized = init.every((c) => exitCodeOf(c) === 0)
  const isReady = phase === "Running" && run.containers.every((c) => c.init || c.status.ready)
  const ended = phase === "Failed" ? "PodFailed" : phase === "Succeeded" ? "PodCompleted" : undefined
  const notReady = isReady ? undefined : (ended ?? "ContainersNotReady")
  const canStart = phase === "Running" || Boolean(init[0]?.status.containerID && phase === "Pending")
  return [
    ...(run.evicted ? [["DisruptionTarget", true, "TerminationByKubelet"] as [string, boolean, string]] : []),
    ["PodReadyToStartContainers", canStart],
    ["Initialized", isInitialized, isInitialized ? undefined : "ContainersNotInitialized"],
    ["Ready", isReady, notReady],
    ["ContainersReady", isReady, notReady],
    ["PodScheduled", true],
  ]
}
function containerToRead({ metadata: { name }, spec }: Pod, given: string | undefined): string {
  const names = [...(spec.initContainers ?? []), ...spec.containers].map((c) => c.name)
  const wanted = given ?? (spec.containers.length === 1 ? spec.containers[0]!.name : undefined)
  if (!wanted)
    throw badRequest(`a container name must be specified for pod ${name}, choose one of: [${names.join(" ")}]`)
  if (!names.includes(wanted)) throw badRequest(`container ${wanted} is not valid for pod ${name}`)
  return wanted
}
function noLogMessage({ metadata: { name } }: Pod, container: string, isPrevious: boolean, c?: Running): string {
  if (isPrevious) return `previous terminated container "${container}" in pod "${name}" not found`
  const reason = c?.status.state?.waiting?.reason ?? "ContainerCreating"
  return `container "${container}" in pod "${name}" is waiting to start: ${reason}`
}
function endOfLog(text: string, { tailLines, limitBytes }: Record<string, string>): string {
  let end = text
  if (tailLines) {
    const lines = text.replace(/\n$/, "").split("\n")
    const tail = lines.slice(Math.max(0, lines.length - Number(tailLines))).join("\n")
    end = tail && text.endsWith("\n") ? `${tail}\n` : tail
  }
  return limitBytes ? Buffer.from(end).subarray(0, Number(limitBytes)).toString() : end
}
