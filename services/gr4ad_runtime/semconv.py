"""Registry of the names in traces and metrics. Services use these constants only, so that a name means one thing.

Attributes never hold user features or ids of users.
"""

from __future__ import annotations

from typing import Final

# Spans inside a service; spans of calls carry the method, as OpenTelemetry's conventions for RPC ask.
SPAN_APPLY_CATALOG_CHANGES: Final = "apply catalog changes"
SPAN_WAIT_FOR_BATCH: Final = "wait for batch"
SPAN_GENERATE_BATCH: Final = "generate batch"
SPAN_ENCODE_CONTEXT: Final = "encode context"
SPAN_BEAM_SEARCH: Final = "beam search"
SPAN_SCORE_ADS: Final = "score ads"
SPAN_SWAP_POLICY: Final = "swap policy"
SPAN_STORE_SERVED_LISTS: Final = "store served lists"
SPAN_TRAIN_POLICY: Final = "train policy"
SPAN_LEARN_FROM_LISTS: Final = "learn from lists"
SPAN_READ_SAMPLES: Final = "read samples"
SPAN_PUBLISH_POLICY: Final = "publish policy"

# Calls, as in OpenTelemetry's conventions for RPC.
RPC_SYSTEM: Final = "rpc.system"
RPC_SERVICE: Final = "rpc.service"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS_CODE: Final = "rpc.grpc.status_code"

# What a call or a piece of work was about.
REQUEST_ID: Final = "gr4ad.request.id"
CODEBOOK_ID: Final = "gr4ad.codebook.id"
CATALOG_CURSOR: Final = "gr4ad.catalog.cursor"
POLICY_ID: Final = "gr4ad.policy.id"
POLICY_CHANNEL: Final = "gr4ad.policy.channel"
HISTORY_LENGTH: Final = "gr4ad.history.length"
HISTORY_SKIPPED: Final = "gr4ad.history.skipped"
CANDIDATES_WANTED: Final = "gr4ad.candidates.wanted"
CANDIDATES_RETURNED: Final = "gr4ad.candidates.returned"
ANSWER_ORIGIN: Final = "gr4ad.answer.origin"
BATCH_SIZE: Final = "gr4ad.batch.size"
BEAM_WIDTHS: Final = "gr4ad.beam.widths"
BEAM_CONSTRAINED_BY: Final = "gr4ad.beam.constrained_by"
LIST_COUNT: Final = "gr4ad.served_list.count"
RUN_ID: Final = "gr4ad.training.run_id"
PRESET: Final = "gr4ad.training.preset"
SAMPLE_COUNT: Final = "gr4ad.training.sample_count"
OUTCOME: Final = "gr4ad.outcome"

# Meters. Durations in seconds, as OpenTelemetry asks.
METRIC_CALL_DURATION: Final = "rpc.server.call.duration"
METRIC_BATCH_SIZE: Final = "gr4ad.generation.batch_size"
METRIC_BATCH_WAIT: Final = "gr4ad.generation.batch_wait"
METRIC_BATCH_DURATION: Final = "gr4ad.generation.batch_duration"
METRIC_QUEUE_SIZE: Final = "gr4ad.generation.queue_size"
METRIC_LIVE_ADS: Final = "gr4ad.generation.live_ads"
METRIC_POLICY_SWAPS: Final = "gr4ad.generation.policy_swaps"
METRIC_POLICIES_REFUSED: Final = "gr4ad.generation.policies_refused"
METRIC_LISTS_SENT: Final = "gr4ad.generation.lists_sent"
METRIC_LISTS_DROPPED: Final = "gr4ad.generation.lists_dropped"
METRIC_LISTS_QUEUED: Final = "gr4ad.generation.lists_queued"
METRIC_CACHE_ENTRIES: Final = "gr4ad.generation.result_cache.entries"
METRIC_CACHE_HITS: Final = "gr4ad.generation.result_cache.hits"
METRIC_CACHE_SHARED: Final = "gr4ad.generation.result_cache.shared"
METRIC_CACHE_MISSES: Final = "gr4ad.generation.result_cache.misses"
METRIC_CACHE_STALE: Final = "gr4ad.generation.result_cache.stale"
METRIC_LISTS_STORED: Final = "gr4ad.reward.lists_stored"
METRIC_EVENTS_STORED: Final = "gr4ad.reward.events_stored"
METRIC_ADS_SPILLED: Final = "gr4ad.sid.ads_spilled"
METRIC_ADS_LEFT_OUT: Final = "gr4ad.sid.ads_left_out"
METRIC_TRAINING_RUNS: Final = "gr4ad.training.runs"
METRIC_LISTS_LEARNED: Final = "gr4ad.training.lists_learned"
METRIC_POLICIES_GATED: Final = "gr4ad.training.policies_gated"
METRIC_POLICIES_PUBLISHED: Final = "gr4ad.training.policies_published"
