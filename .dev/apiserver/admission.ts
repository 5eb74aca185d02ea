// Admission: what may change or reject an object that is valid. Namespaces, quotas, policies and webhooks.
import { detailsOf, forbidden, notFound, qualified, StatusError, statusError } from "./requests.ts"
import type { Labels, Obj } from "./resources.ts"
import type { Store } from "./store.ts"

export type Operation = "CREATE" | "UPDATE" | "DELETE"
/** What is to be admitted. Of a delete, `object` is what is to be deleted. */
export interface Review {
  operation: Operation
  resource: string
  object: Obj
  prev?: Obj | undefined
  isDryRun: boolean
}
/** What a policy or a webhook is asked about; Jobs that are created, unless it says otherwise. */
interface Matches {
  resources?: string[]
  operations?: Operation[]
}
/** A ValidatingAdmissionPolicy, bound by `NAME-binding`. Denies with the message that it returns. */
export interface Policy extends Matches {
  name: string
  /** 422 Invalid unless the validation gives Forbidden. */
  reason?: "Invalid" | "Forbidden"
  deny(review: Review): string | undefined
}
/** What a webhook answers to reject an object; the message follows the API server's own words. */
export interface Denial {
  code?: number
  reason?: string
  message?: string
}
export interface Webhook extends Matches {
  name: string
  /** Its server does not answer, and its failurePolicy is Fail. */
  isDown?: boolean
  mutate?(review: Review): Obj
  deny?(review: Review): Denial | undefined
}

const isAsked = ({ resources = ["jobs"], operations = ["CREATE"] }: Matches, review: Review) =>
  resources.includes(review.resource) && operations.includes(review.operation)

export class Admission {
  readonly policies: Policy[] = []
  readonly webhooks: Webhook[] = []

  constructor(private readonly store: Store) {}

  /** What the mutating webhooks make of an object. */
  mutate(review: Review): Obj {
    let { object } = review
    for (const webhook of this.webhooks) {
      if (!isAsked(webhook, review)) continue
      if (webhook.isDown) throw failedCalling(webhook.name)
      if (webhook.mutate) object = webhook.mutate({ ...review, object })
    }
    return object
  }
  /** Throws a rejection: by policies first, then by webhooks, then by quotas. */
  validate(review: Review): void {
    for (const policy of this.policies) this.ask(policy, review)
    for (const { name, deny, ...matches } of this.webhooks) {
      const denial = isAsked(matches, review) ? deny?.(review) : undefined
      if (denial) throw deniedByWebhook(name, denial)
    }
    if (review.operation === "CREATE" && review.resource === "jobs") admitQuota(this.store, review.object)
  }
  /** Whether a controller may do this. */
  admits(review: Review): boolean {
    try {
      this.validate(review)
      return true
    } catch (error) {
      if (error instanceof StatusError) return false
      throw error
    }
  }
  private ask(policy: Policy, review: Review): void {
    const denial = isAsked(policy, review) ? policy.deny(review) : undefined
    if (denial === undefined) return
    const { resource, object } = review
    const { name } = object.metadata
    const { name: by, reason = "Invalid" } = policy
    const why = `ValidatingAdmissionPolicy '${by}' with binding '${by}-binding' denied request: ${denial}`
    const message = `${qualified(resource, resource)} "${name}" is forbidden: ${why}`
    const details = { ...detailsOf(resource, name), causes: [{ message: why }] }
    throw statusError(reason === "Invalid" ? 422 : 403, reason, message, details)
  }
}

function failedCalling(webhook: string): StatusError {
  const url = "https://webhook.example.com/"
  const why = `failed to call webhook: Post "${url}": dial tcp: connect: connection refused`
  return statusError(500, "InternalError", `Internal error occurred: failed calling webhook "${webhook}": ${why}`)
}
function deniedByWebhook(webhook: string, { code = 400, reason, message }: Denial): StatusError {
  const why = message ?? reason
  const denied = `admission webhook "${webhook}" denied the request${why ? `: ${why}` : " without explanation"}`
  return statusError(code, reason, denied)
}

/** NamespaceLifecycle: the namespace must exist and not be terminating. */
export function admitNamespace(store: Store, resource: string, namespace: string, name: string): void {
  const found = store.find("namespaces", "", namespace)
  if (!found) throw notFound("namespaces", namespace)
  if (!found.metadata.deletionTimestamp) return
  const cause = {
    reason: "NamespaceTerminating",
    message: `namespace ${namespace} is being terminated`,
    field: "metadata.namespace",
  }
  const why = `unable to create new content in namespace ${namespace} because it is being terminated`
  throw forbidden(resource, name, why, [cause])
}

/** ResourceQuota, as far as count/jobs.batch goes: every create needs room, a dry run too. */
function admitQuota(store: Store, job: Obj): void {
  const { namespace, name } = job.metadata
  for (const quota of store.objects.resourcequotas!.values()) {
    const hard = (quota.spec as { hard?: Labels } | undefined)?.hard?.["count/jobs.batch"]
    if (quota.metadata.namespace !== namespace || hard === undefined) continue
    const used = [...store.objects.jobs!.values()].filter((j) => j.metadata.namespace === namespace).length
    const numbers = `requested: count/jobs.batch=1, used: count/jobs.batch=${used}, limited: count/jobs.batch=${hard}`
    if (used >= Number(hard)) throw forbidden("jobs", name, `exceeded quota: ${quota.metadata.name}, ${numbers}`)
  }
}
