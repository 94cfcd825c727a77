-- What a worker did since its last flush, and its sign of life.
-- KEYS[11]: the number of the worker's last applied batch.
-- ARGV: channel, worker, batch number, epoch, sign of life in s, lease in s, JSON {touched, uses, stats, leased, released, drained}.
-- Counts of a batch are added once, however often it comes, and only in their own epoch: after Redis lost its memory
-- the worker tells all its counts again. Returns {generation, epoch}.
local channel, worker, batch, epoch, alive, lease, text = unpack(ARGV)
local payload = cjson.decode(text)
local time = now()
redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', time)
redis.call('ZADD', WORKERS, time + tonumber(alive), worker)
for _, model in ipairs(payload.leased) do redis.call('ZADD', LEASES, time + tonumber(lease), model .. '|' .. worker) end
for _, model in ipairs(payload.released) do redis.call('ZREM', LEASES, model .. '|' .. worker) end
for _, use in ipairs(payload.touched) do
  if redis.call('HEXISTS', SLOTS, use[1]) == 1 then redis.call('ZADD', USED, 'GT', use[2], use[1]) end
end
if redis.call('GET', EPOCH) == epoch and tonumber(redis.call('GET', KEYS[11]) or '0') < tonumber(batch) then
  for _, use in ipairs(payload.uses) do
    redis.call('HINCRBY', USAGE, use[1], use[2])
  end
  for name, count in pairs(payload.stats) do redis.call('HINCRBY', STATS, name, count) end
  redis.call('SET', KEYS[11], batch, 'EX', 86400)
end
local drained = false
for _, one in ipairs(payload.drained) do
  local key = SLOTS .. ':drained:' .. one[1] .. ':' .. one[2]
  redis.call('SADD', key, worker)
  redis.call('EXPIRE', key, 60)
  drained = true
end
if drained then redis.call('PUBLISH', channel, 'drained ') end
return {redis.call('GET', GENERATION) or '0', redis.call('GET', EPOCH) or ''}
