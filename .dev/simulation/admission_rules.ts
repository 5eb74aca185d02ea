// The policies and webhooks of the simulation, by what they do.
import { PREFIX } from "../../operator.ts"
import type { Job, Obj, Policy, Webhook } from "../apiserver/model.ts"
import type { AdmissionRule } from "./histories.ts"
import { isUserJob, jobOfIntent } from "./network.ts"

const isRunning = (object: Obj) => (object as Job).spec.suspend !== true
const isSuspended = (object: Obj) => !isRunning(object)
/** What a webhook's patch leaves in place of some metadata. */
const withMetadata = (object: Obj, metadata: Partial<Obj["metadata"]>): Obj => ({
  ...object,
  metadata: { ...object.metadata, ...metadata },
})
const without = (map: Record<string, string> | undefined, prefix: string) =>
  Object.fromEntries(Object.entries(map ?? {}).filter(([key]) => !key.startsWith(prefix)))

const GONE = { apiVersion: "v1", kind: "ConfigMap", name: "gone", uid: "00000000-0000-4000-a000-000000000000" }
const rejectIf = (is: (object: Obj) => boolean) => (review: { object: Obj }) =>
  is(review.object) ? "rejected by policy" : undefined

const POLICIES: Partial<Record<AdmissionRule, Omit<Policy, "name">>> = {
  "reject all": { deny: () => "rejected by policy", reason: "Forbidden" },
  "reject running Jobs": { deny: rejectIf(isRunning) },
  "reject running Jobs, but not in a dry run": {
    deny: ({ object, isDryRun }) => (isRunning(object) && !isDryRun ? "rejected by policy" : undefined),
  },
  "reject managed Jobs": { deny: rejectIf((object) => (object as Job).spec.managedBy !== undefined) },
  "require the label app": { deny: rejectIf(({ metadata }) => metadata.labels?.app === undefined) },
  "require the annotation note": { deny: rejectIf(({ metadata }) => metadata.annotations?.note === undefined) },
  "reject updates": { operations: ["UPDATE"], deny: () => "rejected by policy" },
  "reject deletes of Jobs": {
    operations: ["DELETE"],
    reason: "Forbidden",
    deny: rejectIf(({ metadata }) => isUserJob(metadata.name)),
  },
  "reject deletes of intents": {
    operations: ["DELETE"],
    reason: "Forbidden",
    deny: rejectIf(({ metadata }) => jobOfIntent(metadata.name) !== undefined),
  },
}
/** Changes suspended Jobs, as intents are. */
const ofSuspended = (change: (object: Obj) => Partial<Obj["metadata"]>): NonNullable<Webhook["mutate"]> => {
  return ({ object }) => (isSuspended(object) ? withMetadata(object, change(object)) : object)
}
const WEBHOOKS: Partial<Record<AdmissionRule, Omit<Webhook, "name">>> = {
  "webhook is down": { isDown: true },
  "webhook answers AlreadyExists": {
    deny: ({ object: { metadata } }) => ({
      code: 409,
      reason: "AlreadyExists",
      message: `jobs.batch "${metadata.name}" already exists`,
    }),
  },
  "webhook drops annotations of suspended Jobs": {
    mutate: ofSuspended(({ metadata }) => ({ annotations: without(metadata.annotations, PREFIX) })),
  },
  "webhook drops labels of suspended Jobs": {
    mutate: ofSuspended(({ metadata }) => ({ labels: without(metadata.labels, PREFIX) })),
  },
  "webhook adds an owner to suspended Jobs": { mutate: ofSuspended(() => ({ ownerReferences: [GONE] })) },
  "webhook adds a finalizer to suspended Jobs": {
    mutate: ofSuspended(({ metadata }) => ({ finalizers: [...(metadata.finalizers ?? []), "example.com/webhook"] })),
  },
  "webhook adds a label to all Jobs": {
    mutate: ({ object }) => withMetadata(object, { labels: { ...object.metadata.labels, webhook: "yes" } }),
  },
}

/** The policy or the webhook of a rule. */
export function admissionOf(rule: AdmissionRule): { policy?: Policy; webhook?: Webhook } {
  const policy = POLICIES[rule]
  const webhook = WEBHOOKS[rule]
  return {
    ...(policy && { policy: { name: rule, ...policy } }),
    ...(webhook && { webhook: { name: rule, ...webhook } }),
  }
}
