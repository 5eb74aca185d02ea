// What people and their tools do in the simulation.
import { type Job, type Model, type Obj, type Request, SCRIPT } from "../apiserver/model.ts"
import { type Action, EDITS, type Flavour, INTENT_EDITS, NAMES, type Name, type PruneTool } from "./histories.ts"
import { jobOfIntent, NAMESPACE } from "./network.ts"

type Metadata = Obj["metadata"]
/** What each tool takes for its own. */
const IS_OWN: Record<PruneTool, (metadata: Metadata) => boolean> = {
  "kubectl apply --prune": ({ labels, annotations }) =>
    labels?.app === "yes" && annotations?.["kubectl.kubernetes.io/last-applied-configuration"] !== undefined,
  ApplySet: ({ labels }) => labels?.["applyset.kubernetes.io/part-of"] !== undefined,
  "Argo CD": ({ labels, annotations }) =>
    labels?.["app.kubernetes.io/instance"] !== undefined ||
    annotations?.["argocd.argoproj.io/tracking-id"] !== undefined,
  "label app": ({ labels }) => labels?.app === "yes",
  "annotation note": ({ annotations }) => annotations?.note !== undefined,
}
/** Whether a tool goes by a single label or annotation of the user, which a policy may require on intents too. */
export const isSweep = (tool: PruneTool) => tool === "label app" || tool === "annotation note"
const HOLD = "example.com/hold"
/** The user's, and one that a webhook gave to an intent of 1.0.0, and that to its Job. */
const FINALIZERS = [HOLD, "example.com/webhook"]

export class People {
  private edits = 0
  private fillers = 0

  constructor(
    private readonly model: Model,
    private readonly flavour: Flavour,
    private readonly after: (ms: number, run: () => void) => void,
  ) {}

  /** Does what a person does; undefined for an action that is none of a person's. */
  act(action: Action): void {
    switch (action.do) {
      case "namespace":
        return void this.model.request({ verb: "delete", resource: "namespaces", name: NAMESPACE })
      case "delete":
        return this.delete(action.name, action.policy)
      case "recreate":
        this.delete(action.name, "Background")
        return this.create(action.name)
      case "apply":
        return this.model.job(NAMESPACE, action.name)
          ? this.patch(action.name, EDITS.label(++this.edits))
          : this.create(action.name)
      case "edit":
        return this.patch(action.name, EDITS[action.what](++this.edits))
      case "break":
        return this.breakPods(action.name)
      case "fill":
        return this.fill(action.ms)
      default:
        this.actOnIntents(action)
    }
  }
  private actOnIntents(action: Action): void {
    switch (action.do) {
      case "cancel":
        for (const name of this.intentsOf(action.name)) this.delete(name, "Background")
        return
      case "editIntent":
        for (const name of this.intentsOf(action.name)) this.patch(name, INTENT_EDITS[action.what])
        return
      case "holdIntent":
        for (const name of this.intentsOf(action.name)) this.patch(name, { metadata: { finalizers: [HOLD] } })
        this.after(action.ms, () => this.releaseIntents())
    }
  }
  /** Deletes what carries the marks of a tool and is not in its manifests. */
  prune(tool: PruneTool): void {
    for (const { metadata } of [...this.model.objects.jobs!.values()])
      if (!(NAMES as readonly string[]).includes(metadata.name) && IS_OWN[tool](metadata))
        this.delete(metadata.name, "Background")
  }
  /** Takes every finalizer off intents that are being deleted. */
  releaseIntents(): void {
    for (const { metadata } of [...this.model.objects.jobs!.values()])
      if (jobOfIntent(metadata.name) && metadata.finalizers?.length)
        this.patch(metadata.name, { metadata: { finalizers: null } })
  }
  /** The controller of a user's finalizer does its work and takes it off. */
  releaseFinalizer({ metadata: { name, uid, finalizers } }: Obj): void {
    const isHeld = (all: string[] | undefined) => all?.some((f) => FINALIZERS.includes(f))
    if (!isHeld(finalizers)) return
    const release = () => {
      const live = this.model.job(NAMESPACE, name)
      if (live?.metadata.uid !== uid || !isHeld(live.metadata.finalizers)) return
      const left = live.metadata.finalizers?.filter((f) => !FINALIZERS.includes(f))
      this.patch(name, { metadata: { finalizers: left } })
      // A policy may have rejected it.
      this.after(10_000, release)
    }
    this.after(this.flavourOf(name as Name).holdMs, release)
  }

  private intentsOf(job: Name): string[] {
    return [...this.model.objects.jobs!.values()].flatMap(({ metadata: { name } }) =>
      jobOfIntent(name) === job ? [name] : [],
    )
  }
  private delete(name: string, propagationPolicy: string): void {
    const request = { resource: "jobs", namespace: NAMESPACE, name, body: { propagationPolicy } }
    this.model.request({ verb: "delete", ...request })
  }
  private patch(name: string, body: object): void {
    this.model.request({ verb: "patch", resource: "jobs", namespace: NAMESPACE, name, body })
  }
  private breakPods(job: Name): void {
    for (const { metadata } of this.model.pods())
      if (metadata.name.startsWith(`${job}-`) && !jobOfIntent(metadata.ownerReferences?.[0]?.name))
        this.model.request({ verb: "delete", resource: "pods", namespace: NAMESPACE, name: metadata.name })
  }
  /** A Job that only takes a place in the quota. */
  private fill(ms: number): void {
    const name = `filler${++this.fillers}`
    const template = { spec: { restartPolicy: "Never", containers: [{ name: "main", image: "image:1" }] } }
    const body = { metadata: { name }, spec: { suspend: true, template } }
    this.model.request({ verb: "create", resource: "jobs", namespace: NAMESPACE, body })
    this.after(ms, () => this.delete(name, "Background"))
  }
  private flavourOf(name: Name): Flavour["jobs"][number] {
    return this.flavour.jobs[NAMES.indexOf(name)] ?? this.flavour.jobs[0]!
  }
  create(name: Name): void {
    this.model.request(this.createRequest(name))
  }
  /** The request of a `kubectl apply` of a Job that does not exist. */
  private createRequest(name: Name): Request {
    const { restartPolicy, ttlSeconds, manual, holdMs, ...flavour } = this.flavourOf(name)
    const ends = { fail: { exitCode: 1 }, oom: { exitCode: 137, reason: "OOMKilled" }, succeed: { exitCode: 0 } }
    const script = [...flavour.ends, "run" as const].map((end) =>
      end === "run" ? {} : { containers: { main: { runMs: 2_000, log: "line\n", ...ends[end] } } },
    )
    const metadata = {
      name,
      labels: {
        app: "yes",
        edit: `${++this.edits}`,
        "applyset.kubernetes.io/part-of": "set",
        "app.kubernetes.io/instance": "jobs",
      },
      annotations: {
        note: "1",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
        "argocd.argoproj.io/tracking-id": `jobs:batch/Job:default/${name}`,
      },
      ...(holdMs > 0 && { finalizers: [HOLD] }),
    }
    const labels: Record<string, string> = manual ? { run: name } : {}
    const template = {
      metadata: { labels, annotations: { [SCRIPT]: JSON.stringify(script) } },
      spec: { restartPolicy, containers: [{ name: "main", image: "image:1" }] },
    }
    const spec = {
      backoffLimit: 0,
      ...(ttlSeconds !== undefined && { ttlSecondsAfterFinished: ttlSeconds }),
      ...(manual && { manualSelector: true, selector: { matchLabels: labels } }),
      template,
    }
    return { verb: "create", resource: "jobs", namespace: NAMESPACE, body: { metadata, spec } as unknown as Job }
  }
}
